r"""Download and store the public datasets of a config, so that its runs need no network.

The datasets are stored in config.data.directory, by default the environment variable TFDS_DATA_DIR
or ~/tensorflow_datasets. A lock file next to the datasets records the source, the file hashes and
the number of rows of each dataset; data that differ from the lock file are refused. Existing
datasets are not touched; after an interruption, the same command resumes. Prints the source and the
number of rows of each dataset, and the number of test questions that are also in a training set.

Examples:
    python -m experiments.prepare --config=configs/intra_domain.py
    python -m experiments.prepare --config=configs/intra_domain.py --config.data.directory=datasets
"""

from typing import Any

from experiments import cli
from malora_jax.training.prepare import prepare_datasets


def main(config: dict[str, Any]) -> None:
    """Prepare the datasets, and print their sources and numbers of rows."""
    print(prepare_datasets(config))


if __name__ == '__main__':
    cli.run(main)
