"""Quickstart: SmolLM2-135M-Instruct learns six tasks at once on two CPU cores.

The tasks are families of short questions from reasoning-gym, of which the base model answers about
0% correctly: reversing a list of words, filtering a list of numbers, sums and differences of
integers and of decimals, finding who likes what, family relationships.

Command:
    python -m experiments.train --config=configs/quickstart.py:malora --workdir=runs/quickstart

The argument is a method in the table in docs/methods, by default malora. It has the paper's ranks.
Differences from the paper: learning rate 1e-3 instead of 5e-4, because the model is small, and 240
steps of 4 packed rows of 128 tokens (about 2,800 examples), to keep the time short.

Hardware and time: two CPU cores (AMD EPYC) and 5 GB of memory; 5 to 13 minutes of training at 140
to 380 tokens a second, and at least 2 minutes for scoring and compilation. JAX 0.10.2.
Expected: 66% exact match on average with seed 0, and 0% before training. The majority baseline,
which gives the best constant answer to all questions of a task, gets 7%.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`."""
    config = common.base_config(arg)
    config.data.tasks = (
        'word_sequence_reversal',
        'number_filtering',
        'chain_sum',
        'decimal_chain_sum',
        'needle_haystack',
        'family_relationships',
    )
    config.optimizer.learning_rate = 1e-3
    config.data.max_per_task = 4000
    config.data.held_out = 64
    config.data.sequence_length = 128
    config.data.batch_size = 4
    config.training.steps = 240
    config.training.checkpoint_every = 60
    return config
