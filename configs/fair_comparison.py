"""The quickstart's tasks with equal budgets: all methods train the same number of parameters.

Command:
    python -m experiments.train --config=configs/fair_comparison.py:malora --workdir=runs/fair

The argument is a method. The methods in `RANKS`, and those whose ranks in the paper fit already,
train 18.93 million parameters, within 3%; docs/comparison_protocol.md says why, and lists the
exceptions. The other differences from configs/quickstart.py are 256 held-out questions and 64
validation examples per task, and a learning rate for each method, tuned by
configs/sweeps/fair_rates.py.

Hardware and time: two CPU cores and 4 GB of memory; about 15 minutes, half of them for scoring.
"""

from ml_collections import ConfigDict

from configs import quickstart

# Ranks that differ from those of the paper, by method. Rank of the subspace if there is one.
RANKS = {
    'lora': {'rank': 70},
    'dora': {'rank': 70},
    'asylora': {'rank': 137},
    'hydralora': {'rank': 14, 'shared_rank': 14},
    'smora': {'num_experts': 47, 'shared_rank': 47},
    'mlora_heads': {'rank': 23, 'shared_rank': 23},
}
# Learning rates by method, from configs/sweeps/fair_rates.py. A variant of a method, such as
# 'malora_unshared', has the learning rate of this method.
LEARNING_RATES: dict[str, float] = {
    'lora': 5e-4,
    'molora': 2e-3,
    'malora': 2e-3,
    'hydralora': 2e-3,
    'asylora': 1e-3,
    'dora': 5e-4,
    'moasylora': 4e-3,
    'malora_small': 2e-3,
    'smora': 1e-3,
    'mlora_heads': 2.5e-4,
    'molora_renormalized': 1e-3,
    'malora_renormalized': 1e-3,
    'lora_active_rank': 1e-3,
}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`."""
    config = quickstart.get_config(arg)
    config.adapter.update(RANKS.get(arg, {}))
    config.data.held_out = 256
    config.data.validation = 64
    config.optimizer.learning_rate = learning_rate(arg)
    config.training.evaluate_every = 120
    return config


def learning_rate(method: str) -> float:
    """Return the tuned learning rate of a method, or that of the quickstart if there is none."""
    family = method.partition('_')[0]
    default = quickstart.get_config('lora').optimizer.learning_rate
    return LEARNING_RATES.get(method, LEARNING_RATES.get(family, default))
