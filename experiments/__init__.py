"""Command-line entries: flags in, one library call."""

import sys

from malora_jax import shutdown

# Commands and stages that continue from what they saved when they are run again. experiments.serve
# is one because SIGTERM is the usual way to end it.
_RESUMABLE = (
    *('generate', 'prepare', 'scaling', 'serve', 'sweep', 'train', 'train_together'),
    *('ultralink documents', 'ultralink dialogues', 'ultralink criteria', 'ultralink translate'),
    *('ultralink prune', 'ultralink import', 'ultralink mgsm', 'ultralink judge'),
)


def _is_resumable() -> bool:
    """Whether `python -m` is starting one of these."""
    # The module's name precedes the arguments; after it, sys.argv has '-m' in place of the name.
    words = sys.orig_argv[-len(sys.argv) :]
    name = words[0].removeprefix('-m').removeprefix('experiments.')
    return name in _RESUMABLE or ' '.join([name, *words[1:2]]) in _RESUMABLE


# So it is only while `python -m` looks for a module of this package. The seconds in which the
# command imports JAX are still to come.
if sys.argv[:1] == ['-m']:
    shutdown.install(_is_resumable())
