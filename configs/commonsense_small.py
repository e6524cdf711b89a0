"""Commonsense reasoning for two CPU cores: SmolLM2-135M, the same eight tasks, smaller ranks.

Commands:
    python -m experiments.prepare --config=configs/commonsense_small.py
    python -m experiments.train --config=configs/commonsense_small.py:malora \
      --workdir=runs/commonsense_small/malora
    python -m experiments.analyze --workdir=runs/commonsense_small --table=commonsense

The argument, the prompts and the scoring are those of configs/commonsense.py. The differences:
learning rate 1e-3, 200 steps of 4 packed rows of 256 tokens, uniform sampling of the tasks, at most
100 held-out questions per task, the ranks below, and six adapted linears as in
configs/intra_domain_small.py. The ranks are a quarter of those of configs/commonsense.py.

Published scores are for a model of 7 billion parameters. A run of this size shows whether a method
learns the form of the answers and beats the guesses of the base model, and no more.
"""

from ml_collections import ConfigDict

from configs import commonsense, intra_domain_small
from malora_jax.adapters.config import DEFAULT_TARGETS

# Rank of one expert and rank of the shared subspace, by method.
RANKS = {
    **intra_domain_small.RANKS,
    'moslora': (16, 16),
    'hydralora': (3, 3),
    'd2mora': (2, 0),
}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; other methods keep their own ranks."""
    config = commonsense.get_config(arg)
    if arg in RANKS:
        config.adapter.rank, config.adapter.shared_rank = RANKS[arg]
    config.adapter.targets = DEFAULT_TARGETS
    return small(config)


def small(config: ConfigDict) -> ConfigDict:
    """Return the config with the base model and the budget for two CPU cores."""
    config.model.name = 'smollm2-135m'
    config.model.dtype = 'float32'
    config.data.held_out = 100
    config.data.size_exponent = 0.0
    config.data.sequence_length = 256
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_ratio = 0.1
    config.training.epochs = 0.0
    config.training.steps = 200
    config.training.checkpoint_every = 50
    return config
