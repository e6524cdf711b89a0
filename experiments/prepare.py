"""Downloads and stores the public datasets of a config, so that its runs need no network.

They go to config.data.directory, by default TFDS_DATA_DIR or ~/tensorflow_datasets, with a lock
file beside them that says which rows they are. What is there already is not touched; the same
command goes on after an interruption.

Example:
    python -m experiments.prepare --config=configs/intra_domain.py
"""

from typing import Any

from experiments import cli
from malora_jax.training.prepare import prepare


def main(config: dict[str, Any]) -> None:
    """Prepares, and prints what there is."""
    print(prepare(config))


if __name__ == '__main__':
    cli.run(main)
