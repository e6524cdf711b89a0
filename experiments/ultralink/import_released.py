r"""Reads the 20 files of the released dataset and checks each row.

Bad rows are named on stderr with file and line, counted and left out.

Examples:
    python -m experiments.ultralink import --input=UltraLink --output=data/released
    python -m experiments.ultralink import --revision=COMMIT --output=data/released
"""

import asyncio

from absl import flags

from experiments import cli
from experiments.ultralink import shared
from malora_jax.errors import UserError
from malora_jax.ultralink import released, stage

_INPUT = flags.DEFINE_string('input', None, 'Folder of the files.')
_REVISION = flags.DEFINE_string(
    'revision', None, f'Instead of a folder: commit of {released.REPOSITORY} to download.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the rows.', required=True)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Imports, and prints the counts.

    Raises:
        UserError: as `released.find`, `released.download` and `released.import_`.
    """
    if bool(_INPUT.value) == bool(_REVISION.value):
        raise UserError('Give either --input, a folder, or --revision, a commit to download.')
    output = shared.output(_OUTPUT)
    revision = _REVISION.value
    folder = released.download(revision) if revision else cli.directory(_INPUT)
    print(stage.describe(asyncio.run(released.import_(released.find(folder), output))))
