"""Quickstart."""

from configs import common


def get_config(arg: str = 'malora'):
    """The config."""
    config = common.base_config(arg)
    config.data.tasks = (
        'word_sequence_reversal',
        'number_filtering',
        'chain_sum',
        'decimal_chain_sum',
        'simple_equations',
        'family_relationships',
    )
    config.optimizer.learning_rate = 1e-3
    config.data.train_examples = 4000
    config.data.held_out = 64
    config.data.sequence_length = 128
    config.data.batch_size = 4
    config.training.steps = 280
    config.training.checkpoint_every = 70
    return config
