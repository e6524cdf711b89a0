"""Refusals of an adapter's rank, tensors and layers."""

import types

import pytest
import tiny_llama
import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.layers import ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.peft_helper import PEFTHelper

from malora_vllm.adapter_checks import check_layers, check_tensors
from malora_vllm.mixture import parse_mixture
from malora_vllm.peft_helper import MixturePEFTHelper, lora_settings


def peft_helper(name='softmax', **changes):
    config = tiny_llama.adapter_config(name)
    config['mixture'].update(changes)
    settings = lora_settings(config)
    fields = ('r', 'lora_alpha', 'target_modules', 'bias', 'mixture')
    return MixturePEFTHelper(**{field: settings[field] for field in fields})


def weights(name='softmax'):
    layers = {}
    for module, (a, b) in tiny_llama.factors(name).items():
        layers[module] = LoRALayerWeights(module, a.shape[0], 1, a, b)
    return layers


def mixture(name='softmax'):
    return parse_mixture(tiny_llama.adapter_config(name)['mixture'])


def test_scale_is_that_of_the_block():
    helper = peft_helper()
    assert isinstance(helper, PEFTHelper)
    assert (helper.r, helper.vllm_lora_scaling_factor) == (112, 2.0)
    helper.validate_legal(LoRAConfig(max_lora_rank=128))


@pytest.mark.parametrize(('limit', 'rank', 'remedy'), [(64, 12, 128), (128, 20, 256), (8, 60, 512)])
def test_rank_above_the_limit(limit, rank, remedy):
    message = (
        rf'needs LoRA rank {8 * (rank + 2)} \(8 experts x \(rank {rank} \+ 2 .*but the server '
        rf'allows {limit}: start the server with --max-lora-rank {remedy}\.'
    )
    with pytest.raises(ValueError, match=message):
        peft_helper(rank=rank).validate_legal(LoRAConfig(max_lora_rank=limit))


def test_rank_above_all_limits():
    with pytest.raises(ValueError, match=r'needs LoRA rank 528 .*export a mixture with a lower'):
        peft_helper(rank=64).validate_legal(LoRAConfig(max_lora_rank=512))


@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
def test_valid_tensors(name):
    check_tensors(mixture(name), weights(name))


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [('num_experts', 4, 56), ('rank', 13, 120), ('router_parts', 1, 104)],
)
def test_rank_of_tensors_contradicts_the_block(field, value, expected):
    block = {**tiny_llama.adapter_config('softmax')['mixture'], field: value}
    with pytest.raises(
        ValueError, match=rf'lora_A of .*q_proj has shape \(112, 128\), .* {expected} rows'
    ):
        check_tensors(parse_mixture(block), weights())


def test_columns_of_lora_b_contradict_the_block():
    layers = weights()
    layer = layers['model.layers.1.mlp.down_proj']
    layer.lora_b = layer.lora_b[:, :96]
    with pytest.raises(ValueError, match=r'lora_B of .*down_proj .*\(128, 96\), .* 112 columns'):
        check_tensors(mixture(), layers)


def test_factor_is_missing():
    layers = weights()
    layers['model.layers.0.self_attn.o_proj'].lora_b = None
    with pytest.raises(ValueError, match=r'has no lora_B of .*o_proj: export'):
        check_tensors(mixture(), layers)


@pytest.mark.parametrize('targets', [['q_proj'], [*tiny_llama.LINEARS]])
def test_targets_differ_from_tensors(targets):
    block = {**tiny_llama.adapter_config('softmax')['mixture'], 'targets': targets}
    with pytest.raises(ValueError, match=r'adapts down_proj, k_proj, .*mixture.targets lists'):
        check_tensors(parse_mixture(block), weights())


def layer(kind, inputs, tp_size=1):
    result = kind.__new__(kind)
    torch.nn.Module.__init__(result)
    result.base_layer = types.SimpleNamespace(input_size=inputs)
    result.tp_size = tp_size
    return result


def manager(tp_size=1, fully_sharded=False, **changes):
    """LoRA layers of one transformer layer, with q, k and v in one layer, as in vLLM."""
    modules = {
        'model.layers.0.self_attn.qkv_proj': layer(ColumnParallelLinearWithLoRA, 128, tp_size),
        'model.layers.0.self_attn.o_proj': layer(RowParallelLinearWithLoRA, 128, tp_size),
        'model.layers.0.mlp.gate_up_proj': layer(ColumnParallelLinearWithLoRA, 128, tp_size),
        'model.layers.0.mlp.down_proj': layer(RowParallelLinearWithLoRA, 192, tp_size),
    }
    packed = {'qkv_proj': ('q_proj', 'k_proj', 'v_proj'), 'gate_up_proj': ('gate_proj', 'up_proj')}
    packed_modules = {}
    for name in modules:
        parent, _, last = name.rpartition('.')
        if last in packed:
            packed_modules[name] = [f'{parent}.{part}' for part in packed[last]]
    return types.SimpleNamespace(
        modules=modules | changes,
        packed_modules=packed_modules,
        lora_config=LoRAConfig(max_lora_rank=128, fully_sharded_loras=fully_sharded),
    )


@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
def test_one_device(name):
    check_layers(weights(name), manager())


@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
def test_fully_sharded_loras(name):
    check_layers(weights(name), manager(tp_size=2, fully_sharded=True))


def test_no_layer_with_split_inputs():
    check_layers(weights('attention'), manager(tp_size=2))


@pytest.mark.parametrize(('name', 'target'), [('softmax', 'o_proj'), ('renormalized', 'down_proj')])
def test_layer_with_split_inputs(name, target):
    message = rf'{target}, whose inputs are split over 2 devices, .* with --fully-sharded-loras'
    with pytest.raises(ValueError, match=message):
        check_layers(weights(name), manager(tp_size=2))


def test_other_base_model():
    changes = {'model.layers.0.mlp.gate_up_proj': layer(ColumnParallelLinearWithLoRA, 96)}
    message = r'up_proj has 128 columns, but the layer has 96 inputs: serve the base model'
    with pytest.raises(ValueError, match=message):
        check_layers(weights(), manager(**changes))


def test_layer_is_not_linear():
    changes = {'model.layers.0.mlp.down_proj': torch.nn.Embedding(2, 2)}
    with pytest.raises(ValueError, match='down_proj, whose type in this model is Embedding, but'):
        check_layers(weights(), manager(**changes))
