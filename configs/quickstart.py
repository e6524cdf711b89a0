"""Quickstart."""

from configs import common


def get_config(arg: str = 'malora'):
    """The config."""
    config = common.base_config(arg)
    config.data.tasks = (
        'spell_backward',
        'word_sequence_reversal',
        'number_filtering',
        'simple_equations',
        'chain_sum',
        'family_relationships',
        'calendar_arithmetic',
        'decimal_chain_sum',
        'leg_counting',
        'time_intervals',
    )
    config.data.train_examples = 4000
    config.data.held_out = 64
    config.data.sequence_length = 256
    config.data.batch_size = 4
    config.training.steps = 150
    config.training.checkpoint_every = 50
    return config
