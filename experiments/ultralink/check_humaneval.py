r"""Checks a file of HumanEval with translated docstrings, row by row.

Each row must be the original problem but for the prose of its docstring. Prints what is wrong with
which row, and how many canonical solutions pass. Exit status 1 if a row has a fault.

Example:
    python -m experiments.ultralink check_humaneval --input=humaneval_es.json \
      --originals=HumanEval.jsonl.gz
"""

import os
import sys

from absl import flags

from experiments import cli
from malora_jax.ultralink.evaluation import humaneval

_INPUT = flags.DEFINE_string('input', None, 'File of translated problems.', required=True)
_ORIGINALS = flags.DEFINE_string('originals', None, 'File of the original ones.', required=True)
_WORKERS = flags.DEFINE_integer(
    'workers', os.cpu_count() or 1, 'Solutions that run at once.', lower_bound=1
)


def main() -> None:
    """Prints the diagnosis.

    Raises:
        UserError: as `humaneval.diagnose`.
    """
    originals, translated = cli.directory(_ORIGINALS), cli.directory(_INPUT)
    found = humaneval.diagnose(originals, translated, workers=_WORKERS.value)
    print(humaneval.table(found))
    if any(each.faults for each in found):
        sys.exit(1)
