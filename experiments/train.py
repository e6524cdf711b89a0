"""Fine-tunes a base model on a mixture of tasks; the same command again resumes.

Example:
    python -m experiments.train --config=configs/quickstart.py:malora --workdir=runs/quickstart
"""

from typing import Any

from absl import flags

from experiments import cli
from malora_jax import training
from malora_jax.training.results import format_table

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.', required=True)


def main(config: dict[str, Any]) -> None:
    """Trains, and prints the table of scores."""
    print(format_table(training.train(config, cli.directory(_WORKDIR))))


if __name__ == '__main__':
    cli.run(main)
