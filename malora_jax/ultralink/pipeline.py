"""Order of the stages: their groups, and which commands read the output of each stage."""

import pathlib
from collections.abc import Sequence

from malora_jax.errors import UserError
from malora_jax.ultralink import manifest as manifest_lib
from malora_jax.ultralink.manifest import read_manifest

# Names of all commands, in the order in which they are used, by the heading of their group.
GROUPS = {
    'Make data: generate, select, translate and prune conversations; inspect what happened.': (
        'import',
        'documents',
        'dialogues',
        'criteria',
        'translate',
        'prune',
        'explain',
        'cache',
    ),
    'Release data: write, read and describe files of conversations.': (
        'export',
        'report',
    ),
    'Evaluate models: score and compare answers, and check translated problems.': (
        'mgsm',
        'answers',
        'judge',
        'check_humaneval',
    ),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)
_CONVERSATION_READERS = ('criteria', 'translate', 'prune', 'export', 'report')
# Commands that read the output of each stage.
READERS = {
    'documents': ('dialogues',),
    'dialogues': ('prune', 'export', 'report'),
    'criteria': _CONVERSATION_READERS,
    'translate': _CONVERSATION_READERS,
    'prune': _CONVERSATION_READERS,
    'import': _CONVERSATION_READERS,
    'mgsm': (),
    'answers': ('judge',),
    'judge': (),
}


def check_inputs(command: str, inputs: Sequence[pathlib.Path]) -> None:
    """Check that inputs which a stage has written are those that a command reads.

    Args:
        command: Name of the command.
        inputs: Files and directories, which may also be the user's own.

    Raises:
        UserError: An input is the output of a stage that the command does not read. The message
            names the stage, and the commands that read its output.
    """
    for path in inputs:
        folder = path if path.is_dir() else path.parent
        if (folder / manifest_lib.NAME).is_file():
            stage = read_manifest(folder).stage
            if command not in READERS.get(stage, (command,)):
                raise UserError(f'{path} is the output of `{stage}`; {_advice(stage)}.')


def _advice(stage: str) -> str:
    *others, last = (f'`{name}`' for name in READERS[stage] or ('',))
    if not READERS[stage]:
        return 'no command reads it'
    return f'run {", ".join(others)}{" or " if others else ""}{last} next'
