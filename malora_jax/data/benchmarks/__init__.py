"""Public datasets: their sources, row parsers, prompt forms and default scoring rules."""

from malora_jax.data.benchmarks.catalog import DATASETS, Dataset, get_dataset
from malora_jax.data.benchmarks.forms import FORMS, Form, get_form, with_shots
from malora_jax.data.benchmarks.item import BrokenRowError, Item, group_answers
from malora_jax.data.benchmarks.scoring import default_scoring

__all__ = [
    'DATASETS',
    'FORMS',
    'BrokenRowError',
    'Dataset',
    'Form',
    'Item',
    'default_scoring',
    'get_dataset',
    'get_form',
    'group_answers',
    'with_shots',
]
