r"""Makes multilingual data for fine-tuning, stage by stage; needs the extra `ultralink`.

Each stage reads JSON Lines and writes a directory of them with a manifest; the same command goes on
after an interruption, and ends with the same bytes.

Examples:
    python -m experiments.ultralink documents --language=fr --input=wiki/fr \
      --tokenizer=llama2-13b --output=data/fr/documents
    python -m experiments.ultralink dialogues --input=data/fr/documents --llm=MODEL \
      --base-url=http://127.0.0.1:8000/v1 --tokenizer=llama2-13b --output=data/fr/dialogues
    python -m experiments.ultralink STAGE --help
"""

import importlib
import sys

from experiments import cli
from malora_jax.errors import UserError, unknown_name

STAGES = (
    *('documents', 'dialogues', 'criteria', 'translate', 'prune', 'export', 'import', 'report'),
    *('check_humaneval', 'mgsm', 'judge'),
)
# A module cannot be called import.
_MODULES = {'import': 'import_released'}


def main() -> None:
    """Runs the stage that the first word of the command line names.

    Raises:
        UserError: there is no such stage.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ''
    if name in ('-h', '--help', '--helpfull', '--helpshort'):
        print(f'{__doc__}\nStages: {", ".join(STAGES)}')
        return
    if not name:
        raise UserError(f'Name a stage first: {", ".join(STAGES)}.')
    if name not in STAGES:
        raise unknown_name('stage', name, STAGES)
    stage = importlib.import_module(f'experiments.ultralink.{_MODULES.get(name, name)}')
    # What --help shows: the stage's own text and flags.
    sys.modules['__main__'].__doc__ = stage.__doc__
    sys.argv[:] = [stage.__name__, *map(_with_underscores, sys.argv[2:])]
    cli.run_without_config(stage.main)


def _with_underscores(word: str) -> str:
    """--base-url is --base_url."""
    name, equals, value = word.partition('=')
    return (
        name.replace('-', '_').replace('__', '--', 1) + equals + value if word[:2] == '--' else word
    )


if __name__ == '__main__':
    cli.call(main)
