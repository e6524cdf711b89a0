"""Compares finished runs: prints a table and writes it, with a plot of their curves.

Example:
    python -m experiments.compare --workdirs=runs/methods --output=runs/methods/comparison
"""

from absl import flags

from experiments import cli
from malora_jax.analysis.compare import compare

_WORKDIRS = flags.DEFINE_string(
    'workdirs', None, 'Directory with a directory for each run.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for table and plot.', required=True)


def main() -> None:
    """Compares, and prints the table."""
    print(compare(cli.directory(_WORKDIRS), cli.directory(_OUTPUT)))


if __name__ == '__main__':
    cli.run_without_config(main)
