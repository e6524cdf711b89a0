"""Public datasets: their sources, row parsers, prompt forms and default scoring rules."""

from malora_jax.data.datasets.catalog import DATASETS, get_dataset
from malora_jax.data.datasets.dataset import Dataset
from malora_jax.data.datasets.forms import FORMS, PromptForm, get_form, with_shots
from malora_jax.data.datasets.item import BrokenRowError, Item, group_answers
from malora_jax.data.datasets.scoring import default_scoring

__all__ = [
    'DATASETS',
    'FORMS',
    'BrokenRowError',
    'Dataset',
    'Item',
    'PromptForm',
    'default_scoring',
    'get_dataset',
    'get_form',
    'group_answers',
    'with_shots',
]
