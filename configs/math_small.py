"""Mathematical problems for two CPU cores: SmolLM2-135M, the same data, smaller ranks.

Commands, with the files that configs/math.py describes:
    python -m experiments.prepare --config=configs/math_small.py \
      --config.data.sources="('math_14k/train=math_14k.json','mawps/test=test.json')"
    python -m experiments.train --config=configs/math_small.py:malora \
      --workdir=runs/math_small/malora
    python -m experiments.analyze --workdir=runs/math_small --table=math

The argument, the prompts and the scoring are those of configs/math.py. The budget and the ranks are
those of configs/commonsense_small.py, with at most 50 held-out questions per task. Expect scores
near those of guessing: SmolLM2-135M solves few of these problems.
"""

from ml_collections import ConfigDict

from configs import commonsense_small, math


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; some methods keep their own ranks."""
    config = commonsense_small.small(math.get_config(arg))
    if arg in commonsense_small.RANKS:
        config.adapter.rank, config.adapter.shared_rank = commonsense_small.RANKS[arg]
    config.data.held_out = 50
    return config
