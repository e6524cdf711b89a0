import importlib
import time

import pytest
from model_helpers import small_method, tiny_model

from malora_jax.models import Decoder, preset
from malora_jax.training import run_config
from malora_jax.training.plan import flops_per_token, memory_bytes, parameter_counts, plan

LLAMA2_7B = 6_738_415_616
# The paper's settings, counted by its equations (3), (7) and (8): trainable, % of base, % of all.
# Nothing in these adapters is frozen.
ROWS = {
    'lora': (143_130_624, 2.124, 2.080),
    'molora': (151_191_552, 2.244, 2.194),
    'malora': (158_859_264, 2.358, 2.303),
    'malora_small': (109_142_016, 1.620, 1.594),
}


def plan_of(method: str, model: str):
    config = importlib.import_module('configs.quickstart').get_config(method)
    config.model.name = model
    return plan(run_config(config.to_dict()))


@pytest.mark.parametrize('method', ROWS)
def test_parameters_on_llama2_7b_to_the_last_digit(method):
    trainable, percent_of_base, percent_of_all = ROWS[method]
    found = plan_of(method, 'llama2-7b')['parameters']
    by_group = found.pop('by_group')
    assert found == {
        'base': LLAMA2_7B,
        'trainable': trainable,
        'frozen_in_adapter': 0,
        'percent_of_base': percent_of_base,
        'percent_of_all': percent_of_all,
    }
    assert sum(by_group.values()) == trainable
    # One router a linear: 32 layers of five linears with 4096 inputs and one with 11008.
    routers = 0 if method == 'lora' else 32 * 8 * (5 * 4096 + 11008)
    assert by_group.get('router', 0) == routers


def test_a_plan_is_quick():
    start = time.perf_counter()
    plan_of('malora', 'llama2-7b')
    assert time.perf_counter() - start < 30


def test_smollm2_has_135_million():
    assert plan_of('malora', 'smollm2-135m')['parameters']['base'] == 134_515_008


def test_frozen_leaves_count_apart():
    model = tiny_model(small_method('malora', frozen=('shared_down',)))
    found = parameter_counts(model)
    # Two layers; q, k, v, gate and up have 64 inputs, down has 96.
    frozen = 2 * 9 * (5 * 64 + 96)
    assert found['frozen_in_adapter'] == found['by_group']['shared_down'] == frozen
    assert found['trainable'] == sum(found['by_group'].values()) - frozen
    everything = found['base'] + found['trainable'] + frozen
    assert found['percent_of_all'] == round(100 * found['trainable'] / everything, 3)


@pytest.mark.parametrize('tied', [True, False])
def test_operations_by_hand(tied):
    model = tiny_model(small_method('lora'), tied=tied)
    found = flops_per_token(model, 128)
    attention, mlp = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96
    adapter = 2 * 8 * (2 * (64 + 32) + (64 + 64) + 3 * (64 + 96))
    assert found['base_forward'] == 2 * (2 * (attention + mlp) + 64 * 300)
    assert found['base_backward'] == found['base_forward']
    assert found['adapter_forward'] == 2 * adapter
    assert found['adapter_backward'] == 4 * adapter
    assert found['attention_forward'] == 2 * 2 * 2 * 64 * 64
    assert found['total'] == sum(value for key, value in found.items() if key != 'total')


@pytest.mark.parametrize('dtype, size', [('float32', 4), ('bfloat16', 2)])
def test_memory_by_hand(dtype, size):
    model = Decoder(preset('tiny', dtype=dtype), small_method('malora'))
    counts, found = parameter_counts(model), memory_bytes(model)
    norms = 64 * (2 * 2 + 1)
    assert found['base'] == size * (counts['base'] - norms) + 4 * norms
    assert found['adapter'] == found['gradients'] == 4 * counts['trainable']
    assert found['optimizer'] == 8 * counts['trainable']
    assert found['total'] == sum(value for key, value in found.items() if key != 'total')
