import importlib
import time

import jax
import pytest

from malora_jax.adapters import METHODS, method, products
from malora_jax.models import Decoder, preset
from malora_jax.training import run_config
from malora_jax.training.plan import count_model_parameters, flops_per_token, memory_bytes, plan
from tests.helpers.models import small_method, tiny_model

LLAMA2_7B = 6_738_415_616
# Counts from the papers' equations, (3), (7) and (8) for MALoRA, and the shapes of its ablations:
# name, changed settings, trainable, frozen in the adapter, % of base, % of all.
ROWS = [
    ('lora', {}, 143_130_624, 0, 2.124, 2.080),
    ('dora', {}, 144_359_424, 0, 2.142, 2.097),
    ('asylora', {}, 157_286_400, 128_974_848, 2.334, 2.239),
    ('molora', {}, 151_191_552, 0, 2.244, 2.194),
    ('molora_r12', {}, 222_756_864, 0, 3.306, 3.200),
    ('molora_same_down', {}, 222_756_864, 0, 3.306, 3.200),
    ('molora', {'rank': 16}, 294_322_176, 0, 4.368, 4.185),
    ('moasylora', {}, 165_347_328, 128_974_848, 2.454, 2.351),
    ('malora', {}, 158_859_264, 0, 2.358, 2.303),
    ('malora_small', {}, 109_142_016, 0, 1.620, 1.594),
    ('malora', {'rank': 24, 'shared_rank': 64}, 310_837_248, 0, 4.613, 4.410),
    ('malora_fixed_shared', {}, 166_133_760, 32_243_712, 2.465, 2.395),
    ('malora_symmetric', {}, 151_977_984, 0, 2.255, 2.206),
    ('malora_unshared', {}, 158_343_168, 0, 2.350, 2.296),
    ('malora_shared_up', {}, 144_703_488, 0, 2.147, 2.102),
    ('malora_fixed_core', {}, 158_269_440, 589_824, 2.349, 2.295),
    ('molora_dispatch', {}, 151_191_552, 0, 2.244, 2.194),
    ('malora_dispatch', {}, 158_859_264, 0, 2.358, 2.303),
    ('hydralora', {}, 138_117_120, 0, 2.050, 2.009),
    ('hydralora_top2', {}, 138_117_120, 0, 2.050, 2.009),
    ('alora', {}, 156_696_576, 0, 2.325, 2.273),
    ('adamole', {}, 152_199_360, 0, 2.259, 2.209),
    ('smora', {}, 142_737_408, 8_448, 2.118, 2.074),
    ('smora', {'num_experts': 64, 'shared_rank': 64}, 207_618_048, 12_288, 3.081, 2.989),
    ('flylora', {}, 157_286_400, 128_999_424, 2.334, 2.239),
    ('align_lora', {}, 143_130_624, 0, 2.124, 2.080),
    ('remix', {}, 151_191_552, 0, 2.244, 2.194),
    # A and Λ of six tasks, three B_i, and their weights.
    ('mtl_lora', {}, 141_860_736, 0, 2.105, 2.062),
    ('moslora', {}, 143_917_056, 0, 2.136, 2.091),
    ('comol', {}, 149_520_384, 0, 2.219, 2.171),
    # 32 layers of 3 · 12 columns of A and 3 of the router for 31488 inputs, 8 · 12 columns of B for
    # 38400 outputs, and six second routers of 12 · 8.
    ('d2mora', {}, 157_280_256, 0, 2.334, 2.281),
    # Trained as MoLoRA; frozen are the initial values of its projections, without routers.
    ('goat', {}, 151_191_552, 143_130_624, 2.244, 2.150),
    # 32 layers of 20 columns of A for 31488 inputs, and of 5 heads of rank 20 for 38400 outputs;
    # the residual has one head.
    ('mlora_heads', {}, 143_032_320, 44_728_320, 2.123, 2.065),
    # r̄ = 13 gives the 2.2% that the paper prints without the ranks.
    ('malora_shared_up', {'rank': 13}, 152_813_568, 0, 2.268, 2.218),
]


def plan_of(method: str, model: str, **settings):
    config = importlib.import_module('configs.quickstart').get_config(method)
    config.model.name = model
    config.adapter.update(settings)
    return plan(run_config(config.to_dict()))


@pytest.mark.parametrize(
    'row', ROWS, ids=lambda row: f'{row[0]}{"".join(map(str, row[1].items()))}'
)
def test_parameters_on_llama2_7b_to_the_last_digit(row):
    method, settings, trainable, frozen, percent_of_base, percent_of_all = row
    found = plan_of(method, 'llama2-7b', **settings)['parameters']
    by_group = found.pop('by_group')
    assert found == {
        'base': LLAMA2_7B,
        'trainable': trainable,
        'frozen_in_adapter': frozen,
        'percent_of_base': percent_of_base,
        'percent_of_all': percent_of_all,
    }
    assert sum(by_group.values()) == trainable + frozen
    # One router per linear: 32 layers of five linears with 4096 inputs and one with 11008.
    without = ('lora', 'dora', 'asylora', 'align_lora', 'mtl_lora', 'moslora', 'flylora')
    without = (*without, 'mlora_heads')
    # CoMoL's routers read 64 activations; D²MoRA's have 3 outputs.
    routers = dict.fromkeys(without, 0) | {'comol': 32 * 6 * 8 * 64}
    routers |= {'d2mora': 32 * 3 * (5 * 4096 + 11008)}
    experts = settings.get('num_experts', 44 if method == 'smora' else 8)
    assert by_group.get('router', 0) == routers.get(method, 32 * experts * (5 * 4096 + 11008))


def test_experts_per_layer_on_llama2_7b():
    """MoLA with 2, 4, 6 and 8 experts in a quarter of the layers each, on average 5."""
    per_expert = method('molora', rank=13).structure.rank * (
        # Inputs and outputs of q, k, v, gate, up and down, and the router's column.
        3 * (4096 + 4096) + 2 * (4096 + 11008) + (11008 + 4096)
    )
    routers = 5 * 4096 + 11008
    settings = {'rank': 13, 'experts_per_layer': (2, 4, 6, 8)}
    found = plan_of('molora', 'llama2-7b', **settings)['parameters']
    assert found['trainable'] == 32 * 5 * (per_expert + routers) == 150_405_120
    assert found['by_group']['router'] == 32 * 5 * routers


def test_every_method_has_a_row():
    assert {row[0] for row in ROWS} == {*METHODS}


def test_a_plan_is_quick():
    start = time.perf_counter()
    plan_of('malora', 'llama2-7b')
    assert time.perf_counter() - start < 30


def test_smollm2_has_135_million():
    assert plan_of('malora', 'smollm2-135m')['parameters']['base'] == 134_515_008


def test_frozen_leaves_count_apart():
    model = tiny_model(small_method('malora', frozen=('shared_down',)))
    found = count_model_parameters(model)
    # In two layers, q, k, v, gate and up have 64 inputs, and down has 96.
    frozen = 2 * 9 * (5 * 64 + 96)
    assert found['frozen_in_adapter'] == found['by_group']['shared_down'] == frozen
    assert found['trainable'] == sum(found['by_group'].values()) - frozen
    everything = found['base'] + found['trainable'] + frozen
    assert found['percent_of_all'] == round(100 * found['trainable'] / everything, 3)


@pytest.mark.parametrize('tied', [True, False])
def test_operations_by_hand(tied):
    model = tiny_model(small_method('lora'), tied=tied)
    found = flops_per_token(model, 128, 4)
    attention, mlp = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96
    adapter = 2 * 8 * (2 * (64 + 32) + (64 + 64) + 3 * (64 + 96))
    assert found['base_forward'] == 2 * (2 * (attention + mlp) + 64 * 300)
    assert found['base_backward'] == found['base_forward']
    assert found['adapter_forward'] == 2 * adapter
    assert found['adapter_backward'] == 4 * adapter
    assert found['attention_forward'] == 2 * 2 * 2 * 64 * 64
    assert found['total'] == sum(value for key, value in found.items() if key != 'total')


# Scalars of six linears, whose inputs add up to 416 and outputs to 384: in trained leaves, then in
# frozen ones.
PRODUCTS = {
    'lora': (8 * 416 + 8 * 384, 0),
    'dora': (8 * 416 + 8 * 384, 0),
    'asylora': (8 * 384, 8 * 416),
    'molora': (4 * 416 + 4 * 3 * (416 + 384), 0),
    'malora': (4 * 416 + 9 * 416 + 6 * 4 * 9 * 4 + 16 * 384, 0),
    'malora_fixed_shared': (4 * 416 + 6 * 4 * 9 * 5 + 20 * 384, 9 * 416),
    'malora_unshared': (4 * 416 + 4 * 2 * 416 + 6 * 4 * 2 * 4 + 16 * 384, 0),
    'malora_shared_up': (4 * 416 + 16 * 416 + 6 * 4 * 4 * 9 + 9 * 384, 0),
    'hydralora': (4 * 416 + 5 * 416 + 20 * 384, 0),
    'alora': (4 * 416 + 20 * 416 + 5 * 384, 0),
    'moslora': (8 * 416 + 6 * 8 * 8 + 8 * 384, 0),
    # Each token is multiplied with the cores and the weights of both tasks.
    'mtl_lora': (5 * 416 + 6 * 2 * (5 * 5 + 4) + 4 * 5 * 384, 0),
    # The routers read 5 activations.
    'comol': (6 * 5 * 4 + 5 * 416 + 6 * 4 * 5 * 5 + 5 * 384, 0),
    # The last column of a router is its threshold.
    'adamole': (5 * 416 + 4 * 3 * (416 + 384), 0),
    # The biases are not multiplied.
    'smora': (6 * 416 + 6 * (416 + 384), 0),
    'flylora': (8 * 384, 8 * 416),
    # The second routers read 3 activations.
    'd2mora': (4 * 416 + 12 * 416 + 6 * 3 * 8 + 24 * 384, 0),
    'goat': (4 * 416 + 4 * 3 * (416 + 384), 4 * 3 * (416 + 384)),
    'mlora_heads': (5 * 416 + 4 * 5 * 384, 5 * (416 + 384)),
    # Two of four experts.
    'molora_dispatch': (4 * 416 + 2 * 3 * (416 + 384), 0),
    'malora_dispatch': (4 * 416 + 9 * 416 + 6 * 2 * 9 * 4 + 8 * 384, 0),
}


def test_only_routers_are_trained_if_the_experts_are_frozen():
    model = tiny_model(small_method('molora', num_experts=6, rank=8, frozen=('down', 'up')))
    # Six linears in two layers, whose inputs add up to 416 and outputs to 384.
    routers, experts = 2 * 6 * 416, 2 * 6 * 8 * (416 + 384)
    found = count_model_parameters(model)
    assert (found['trainable'], found['frozen_in_adapter']) == (routers, experts)
    assert found['by_group'].keys() == {'router', 'down', 'up'}
    flops = flops_per_token(model, 128, 4)
    assert flops['adapter_forward'] == 2 * (routers + experts)
    assert flops['adapter_backward'] == 2 * (2 * routers + experts)


@pytest.mark.parametrize('name', PRODUCTS)
def test_operations_of_an_adapter_by_hand(name):
    """Forward pass and input gradient use every leaf; weight gradients only trained leaves."""
    trained, frozen = PRODUCTS[name]
    found = flops_per_token(tiny_model(small_method(name)), 128, 4)
    assert found['adapter_forward'] == 2 * 2 * (trained + frozen)
    assert found['adapter_backward'] == 2 * 2 * (2 * trained + frozen)
    # Aᵀ W and ‖w‖², then Aᵀ A and its product with B, for the 512 tokens of a batch.
    weights = 64 * (64 + 32 + 32) + 3 * 64 * 96
    lengths = 2 * 2 * ((8 + 1) * weights + 8 * 8 * (416 + 384)) / 512
    assert found['column_lengths'] == (lengths if name == 'dora' else 0)


def test_every_sample_costs_a_forward_and_a_backward_pass():
    sampled, alone = (
        flops_per_token(tiny_model(small_method(name, **changes)), 128, 4)
        for name, changes in (('remix', {'samples': 3}), ('molora', {}))
    )
    assert sampled == {part: 3 * count for part, count in alone.items()}


def test_operations_of_column_lengths_as_the_compiler_counts_them():
    """The formula ignores elementwise operations, which are below 2% here."""
    shapes = [
        jax.ShapeDtypeStruct(shape, 'float32') for shape in [(256, 512), (256, 32), (32, 512)]
    ]
    lowered = jax.jit(products.column_norms, static_argnums=3).lower(*shapes, 2.0)
    structure = method('dora', rank=32).structure
    expected = structure.column_norm_flops(256, 512)
    assert expected == 2 * (256 * 512 * 33 + 32 * 32 * (256 + 512))
    assert 1 < lowered.cost_analysis()['flops'] / expected < 1.02


def test_a_step_has_the_tokens_of_all_its_batches():
    config = importlib.import_module('configs.quickstart').get_config()
    alone = plan(run_config(config.to_dict()))
    config.training.accumulate = 3
    config.training.remat = 'full'
    found = plan(run_config(config.to_dict()))
    assert found.pop('tokens_per_step') == 3 * alone.pop('tokens_per_step') == 3 * 4 * 128
    assert found == alone


@pytest.mark.parametrize('name', ['malora', 'malora_fixed_shared', 'dora'])
@pytest.mark.parametrize('dtype, size', [('float32', 4), ('bfloat16', 2)])
def test_memory_by_hand(dtype, size, name):
    model = Decoder(preset('tiny', dtype=dtype), small_method(name))
    counts, found = count_model_parameters(model), memory_bytes(model)
    norms = 64 * (2 * 2 + 1)
    assert found['base'] == size * (counts['base'] - norms) + 4 * norms
    assert found['adapter'] == 4 * (counts['trainable'] + counts['frozen_in_adapter'])
    assert found['gradients'] == 4 * counts['trainable']
    assert found['optimizer'] == 8 * counts['trainable']
    assert found['total'] == sum(value for key, value in found.items() if key != 'total')
