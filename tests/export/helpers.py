"""Trained models without training: random values everywhere, on the tiny base model."""

import pathlib

from malora_jax.data import get_template
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import preset
from malora_jax.models.loading.base_model import LoadedBase, load_base
from tests.helpers.models import random_variables, small_method, tiny_model
from tests.helpers.tiny_gguf import write_tiny_gguf

# Method and its changed settings, by name of the variant.
VARIANTS = {
    'lora': ('lora', {}),
    'rslora': ('lora', {'rank_stabilized': True, 'targets': ('q', 'o', 'down')}),
    'dora': ('dora', {}),
    'asylora': ('asylora', {}),
    'moslora': ('moslora', {}),
}
TOKENS = [[5, 17, 200, 33, 250, 6, 90, 120], [9, 8, 7, 100, 101, 102, 3, 4]]


def tiny_base(directory: pathlib.Path) -> tuple[LoadedBase, str]:
    """Write and load the tiny base model; return it and the path of its weights."""
    path = directory / 'tiny.gguf'
    write_tiny_gguf(path)
    return load_base(preset('tiny'), str(path)), str(path)


def restored_model(name: str, base: LoadedBase, weights: str = '', step: int = 7) -> TrainedModel:
    """Return a restored model, as if a run of this method or variant had ended at this step."""
    method, changes = VARIANTS.get(name, (name, {}))
    model = tiny_model(small_method(method, **changes))
    variables = random_variables(model, seed=3) | {'params': base.params}
    return TrainedModel(base, model, variables, get_template('chatml'), method, weights, step)
