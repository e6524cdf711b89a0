"""Prints a table of the paper from finished runs beside its numbers, and writes it with plots.

Example:
    python -m experiments.table --table=table1 --workdirs=runs/table1
"""

from absl import flags

from experiments import cli
from malora_jax.analysis.paper import TABLES
from malora_jax.analysis.tables import make_table

_TABLE = flags.DEFINE_enum('table', None, list(TABLES), 'Which table.', required=True)
_WORKDIRS = flags.DEFINE_string(
    'workdirs', None, 'Directory with a directory for each run.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for table and plots; default: workdirs.')


def main() -> None:
    """Makes the table, and prints it."""
    workdirs = cli.directory(_WORKDIRS)
    output = workdirs if _OUTPUT.value is None else cli.directory(_OUTPUT)
    print(make_table(_TABLE.value, workdirs, output))


if __name__ == '__main__':
    cli.run_without_config(main)
