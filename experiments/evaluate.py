"""Score a run's checkpoint, or the base model without --workdir, on held-out questions.

Prints one JSON object. The checkpoint with the lowest validation loss is scored, or the newest one
if the run measured no validation loss; `step` is the step of this checkpoint. The config must be
the run's own, because another config could hold out questions that the run was trained on.

Examples:
    python -m experiments.evaluate --config=configs/quickstart.py:malora --workdir=runs/quickstart
    python -m experiments.evaluate --config=configs/quickstart.py
"""

import json
from typing import Any

from absl import flags

from experiments import cli
from malora_jax.training.evaluate import evaluate

_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run whose checkpoint is scored, or gs://BUCKET/PATH; without it, the base '
    'model is scored.',
)


def main(config: dict[str, Any]) -> None:
    """Score the model, and print its scores as JSON."""
    workdir = None if _WORKDIR.value is None else cli.flag_path(_WORKDIR)
    print(json.dumps(evaluate(config, workdir), indent=2))


if __name__ == '__main__':
    cli.run(main)
