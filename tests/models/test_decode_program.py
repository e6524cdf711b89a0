"""Guard against regressions of decoding speed: what XLA makes of a decode step on CPU."""

import math
import re

import numpy as np
import pytest

from malora_jax.models import decoding
from malora_jax.models.adapter_bank import bank_adapters
from malora_jax.models.decode_state import init_decode_state
from tests.helpers.models import random_variables, small_method, tiny_model

LENGTH = 96
# Linear layers with a common input.
GROUPS = [{'q', 'k', 'v'}, {'o'}, {'gate', 'up'}, {'down'}]


def traced_decode(method: str | None, slots: int):
    """Return the traced decode step, and its model."""
    if method is None:
        model = tiny_model()
        variables = random_variables(model)
    else:
        adapted = tiny_model(small_method(method))
        model, variables = bank_adapters([(adapted, random_variables(adapted))])
    layers = decoding.unstack_layers(model.config, variables)
    state = init_decode_state(model.config, slots, LENGTH, per_layer=True)
    arguments = variables, layers, state, np.array([300], np.int32)
    return decoding.decode.trace(model, 4, *arguments), model


@pytest.mark.parametrize('slots', [1, 8])
@pytest.mark.parametrize('method', [None, 'malora'])
def test_the_cache_is_written_in_place(method, slots):
    traced, model = traced_decode(method, slots)
    program = traced.lower().compile().as_text()
    config = model.config
    size = slots * config.num_kv_heads * config.head_width * LENGTH
    shapes = re.findall(r'= \w+\[([\d,]+)\]\S* copy\(', program)
    copied = [shape for shape in shapes if math.prod(map(int, shape.split(','))) == size]
    assert copied == []


def test_linears_with_one_input_share_their_products():
    """A layer has one down-projection and one router product per input, and one up per linear."""
    counts = {}
    for method in (None, 'lora', 'malora'):
        traced, model = traced_decode(method, 8)
        counts[method] = str(traced.jaxpr).count('dot_general')
    targets, layers = model.bank.targets, model.config.num_layers
    num_groups = sum(bool(group & set(targets)) for group in GROUPS)
    assert 1 < num_groups < len(targets)
    assert counts['lora'] - counts[None] == layers * (num_groups + len(targets))
    # With a router, also the product that repeats the gates.
    assert counts['malora'] - counts[None] == layers * (3 * num_groups + len(targets))
