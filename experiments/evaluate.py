"""Score a run's checkpoint, or the base model without --workdir, on held-out questions.

Prints one JSON object to stdout, and a table of the scores to stderr. The checkpoint with the
lowest validation loss is scored, or the newest one if the run measured no validation loss; `step`
is the step of this checkpoint. The config must be the run's own, because another config could hold
out questions that the run was trained on.

Examples:
    python -m experiments.evaluate --config=configs/quickstart.py:malora --workdir=runs/quickstart
    python -m experiments.evaluate --config=configs/quickstart.py
"""

import json
import sys
from typing import Any

from absl import flags

from experiments import cli
from malora_jax.training.config import run_config
from malora_jax.training.evaluate import evaluate
from malora_jax.training.results import format_evaluation

_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run whose checkpoint is scored, or gs://BUCKET/PATH; without it, the base '
    'model is scored.',
)


def main(config: dict[str, Any]) -> None:
    """Score the model, and print its scores as a table and as JSON."""
    workdir = None if _WORKDIR.value is None else cli.flag_path(_WORKDIR)
    evaluation = evaluate(config, workdir)
    run = run_config(config)
    name = f'{run.method} on {run.model.name}' if workdir else run.model.name
    print(format_evaluation(evaluation, name), file=sys.stderr)
    print(json.dumps(evaluation, indent=2))


if __name__ == '__main__':
    cli.run(main)
