"""Prints what a run would cost, as one JSON object: parameters, operations, memory.

Example:
    python -m experiments.plan --config=configs/quickstart.py:malora --config.model.name=llama2-7b
"""

import json

from experiments import cli
from malora_jax.training import plan, run_config

if __name__ == '__main__':
    cli.run(lambda config: print(json.dumps(plan.plan(run_config(config)), indent=2)))
