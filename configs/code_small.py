"""Code generation for two CPU cores: SmolLM2-135M, the same data, smaller ranks.

Commands:
    python -m experiments.prepare --config=configs/code_small.py
    python -m experiments.train --config=configs/code_small.py:malora \
      --workdir=runs/code_small/malora
    python -m experiments.analyze --workdir=runs/code_small --table=code

The argument, the prompts and the scoring are those of configs/code.py. The budget and the ranks are
those of configs/commonsense_small.py, with 40 problems of HumanEval. Expect scores near zero:
SmolLM2-135M solves few of them.
"""

from ml_collections import ConfigDict

from configs import code, commonsense_small


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; some methods keep their own ranks."""
    config = commonsense_small.small(code.get_config(arg))
    if arg in commonsense_small.RANKS:
        config.adapter.rank, config.adapter.shared_rank = commonsense_small.RANKS[arg]
    config.data.held_out = 40
    return config
