"""Command-line entry points: each parses its flags and makes one library call."""

import gc
import sys

from malora_jax import shutdown

# Commands and stages that resume from what they saved when they are run again. experiments.serve
# is listed because SIGTERM is the usual way to end it, which must give exit status 0.
_RESUMABLE = (
    *('generate', 'prepare', 'scaling', 'serve', 'sweep', 'train', 'train_together'),
    *('ultralink documents', 'ultralink dialogues', 'ultralink criteria', 'ultralink translate'),
    *('ultralink prune', 'ultralink import', 'ultralink mgsm', 'ultralink answers'),
    'ultralink judge',
)


def _is_resumable() -> bool:
    """Return whether this command, if it is run again, resumes from its saved progress.

    The command is the module that `python -m` is about to load. The answer decides the exit status
    after SIGTERM: 0 for a command that resumes, else 143.
    """
    # While `python -m` looks for the module, sys.argv has '-m' in place of the module's name;
    # `malora` sets it so.
    words = sys.orig_argv[-len(sys.argv) :]
    name = words[0].removeprefix('-m').removeprefix('experiments.')
    return name in _RESUMABLE or ' '.join([name, *words[1:2]]) in _RESUMABLE


# This is only true while `python -m` looks for a module of this package. Signals are handled this
# early because importing JAX takes seconds, during which a signal may arrive.
if sys.argv[:1] == ['-m']:
    shutdown.install_handlers(_is_resumable())
    # Nothing that is imported becomes garbage. `cli.call_and_exit` turns collections on again.
    gc.disable()
