"""Prints what a run would cost, as one JSON object: parameters, operations, memory.

Example:
    python -m experiments.plan --config=configs/quickstart.py:malora --config.model.name=llama2-7b
"""

import json
from typing import Any

from experiments import cli
from malora_jax.training import run_config
from malora_jax.training.plan import plan


def main(config: dict[str, Any]) -> None:
    """Plans, and prints the plan."""
    print(json.dumps(plan(run_config(config)), indent=2))


if __name__ == '__main__':
    cli.run(main)
