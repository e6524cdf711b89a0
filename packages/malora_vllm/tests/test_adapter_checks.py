"""Refusals of an adapter's rank, tensors and layers."""

import types
from typing import ClassVar
from unittest import mock

import pytest
import tiny_llama
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import parallel_state
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers import linear
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.utils import PPMissingLayer

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


class TinyLlama(torch.nn.Module, SupportsLoRA):
    """Linear layers of the tiny Llama, fused as in vLLM; a pipeline stage has some of them."""

    packed_modules_mapping: ClassVar = {
        'qkv_proj': ['q_proj', 'k_proj', 'v_proj'],
        'gate_up_proj': ['gate_proj', 'up_proj'],
    }
    config = None

    def __init__(self, layers):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(
            self._layer() if layer in layers else PPMissingLayer()
            for layer in range(tiny_llama.LAYERS)
        )

    @staticmethod
    def _layer():
        width, hidden = tiny_llama.WIDTH, tiny_llama.HIDDEN
        heads = tiny_llama.HEAD_WIDTH, tiny_llama.HEADS, tiny_llama.KV_HEADS
        layer = torch.nn.Module()
        layer.self_attn, layer.mlp = torch.nn.Module(), torch.nn.Module()
        layer.self_attn.qkv_proj = linear.QKVParallelLinear(width, *heads)
        layer.self_attn.o_proj = linear.RowParallelLinear(width, width)
        layer.mlp.gate_up_proj = linear.MergedColumnParallelLinear(width, [hidden, hidden])
        layer.mlp.down_proj = linear.RowParallelLinear(hidden, width)
        return layer


# vLLM keeps the names of missing layers by the address of a model, which must not be used again.
_MODELS = []


def manager(layers=(0, 1), tp_size=1, **lora_settings):
    """vLLM's manager of the LoRA layers in the first of tp_size processes."""
    config = VllmConfig()
    lora_config = LoRAConfig(max_lora_rank=128, lora_dtype=torch.float32, **lora_settings)
    group = types.SimpleNamespace(world_size=tp_size, rank_in_group=0)
    with set_current_vllm_config(config), mock.patch.object(parallel_state, '_TP', group):
        model = TinyLlama(layers)
        _MODELS.append(model)
        device = torch.device('cpu')
        return LoRAModelManager(model, 4, 64, tiny_llama.VOCABULARY, lora_config, device, config)


def check(name, manager, layers=None):
    check_layers(mixture(name), weights(name) if layers is None else layers, manager)


@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
def test_one_device(name):
    check(name, manager())


# With four devices, two of them share each head of k and v.
@pytest.mark.parametrize('tp_size', [2, 4])
@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
def test_fully_sharded_loras(name, tp_size):
    check(name, manager(tp_size=tp_size, fully_sharded_loras=True))


@pytest.mark.parametrize('tp_size', [2, 4])
def test_no_layer_with_split_inputs(tp_size):
    check('attention', manager(tp_size=tp_size))


@pytest.mark.parametrize(('name', 'target'), [('softmax', 'o_proj'), ('renormalized', 'down_proj')])
def test_layer_with_split_inputs(name, target):
    message = rf'{target}, whose inputs are split over 2 devices, .* with --fully-sharded-loras'
    with pytest.raises(ValueError, match=message):
        check(name, manager(tp_size=2))


@pytest.mark.parametrize('layers', [(0,), (1,)])
def test_pipeline_stage(layers):
    check('softmax', manager(layers))


@pytest.mark.parametrize('modules', [['o_proj'], ['qkv_proj'], ['k_proj', 'down_proj']])
def test_target_modules_of_the_server(modules):
    check('equal', manager(target_modules=modules))


@pytest.mark.parametrize('target', ['q_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj'])
def test_adapter_lacks_a_layer(target):
    layers = weights()
    name = next(name for name in layers if '.1.' in name and name.endswith(target))
    del layers[name]
    message = rf'has no weights of {name}, which mixture.targets includes: export the adapter again'
    with pytest.raises(ValueError, match=message):
        check('softmax', manager(), layers)
    # Another pipeline stage has the layer.
    check('softmax', manager((0,)), layers)


@pytest.mark.parametrize('target', ['q_proj', 'down_proj'])
def test_model_lacks_a_layer(target):
    layers = weights()
    name = next(name for name in layers if '.1.' in name and name.endswith(target))
    absent = name.replace('.1.', '.2.')
    layers[absent] = layers[name]
    message = f'The mixture adapts {absent}, which this model lacks: serve the base model'
    for stage in (0, 1), (0,):
        with pytest.raises(ValueError, match=message):
            check('softmax', manager(stage), layers)


@pytest.mark.parametrize('target', ['k_proj', 'o_proj', 'up_proj', 'down_proj'])
@pytest.mark.parametrize('tp_size', [1, 2, 4])
def test_other_base_model(target, tp_size):
    one = manager(tp_size=tp_size, fully_sharded_loras=True)
    outputs, inputs = tiny_llama.LINEARS[target]
    for factor, axis, message in (
        ('lora_a', 1, rf'{target} has {inputs // 2} columns, but the layer has {inputs} inputs'),
        ('lora_b', 0, rf'{target} has {outputs // 2} rows, but the layer has {outputs} outputs'),
    ):
        layers = weights()
        layer = layers[next(name for name in layers if name.endswith(target))]
        half = getattr(layer, factor).chunk(2, dim=axis)[0]
        setattr(layer, factor, half)
        with pytest.raises(ValueError, match=f'{message}: serve the base model of mixture.base'):
            check('softmax', one, layers)


def test_layer_is_not_linear():
    one = manager()
    one.modules['model.layers.0.mlp.down_proj'] = torch.nn.Embedding(2, 2)
    with pytest.raises(ValueError, match='down_proj, whose type in this model is Embedding, but'):
        check('softmax', one)
