import copy

import numpy as np
import pytest
import reference
import torch
from tiny_models import (
    FAMILIES,
    MORE_GATES,
    base_of,
    gates_object,
    mixture_block,
    random_model,
    token_ids,
)
from torch import nn

from mixture_transformers.layers import MixtureLinear, top_k_gates
from mixture_transformers.schema import GATES, SCORES, parse_mixture

SUBSET = ['q_proj', 'o_proj', 'down_proj']


def random_linear(block, dtype=torch.float32):
    torch.manual_seed(0)
    layer = MixtureLinear(nn.Linear(16, 12), parse_mixture(block))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for part in (layer.base, layer.down, layer.up):
        part.to(dtype)
    return layer


def float64_tensors(module):
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


# Values.


@pytest.mark.parametrize('top_k', [1, 2, 5])
@pytest.mark.parametrize('gates', [*GATES, *MORE_GATES.values()])
def test_a_linear_layer_computes_the_equation(gates, top_k):
    block = mixture_block(gates=gates, top_k=top_k)
    layer = random_linear(block)
    x = torch.randn(2, 20, 16)
    expected = reference.linear(x.reshape(40, 16).double().numpy(), float64_tensors(layer), block)
    np.testing.assert_allclose(
        layer(x).detach().reshape(40, 12), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def replace_linears(base, model):
    """Let the equation in NumPy compute the adapted layers of a float64 base model."""

    def hook(module, inputs, output):
        (x,) = inputs
        y = reference.linear(x.flatten(0, -2).numpy(), module.tensors, model.config.mixture)
        return torch.from_numpy(y).reshape(output.shape)

    for name, module in model.named_modules():
        if isinstance(module, MixtureLinear):
            linear = base.get_submodule(name)
            linear.tensors = float64_tensors(module)
            linear.register_forward_hook(hook)


@pytest.mark.parametrize('gates', [*GATES, *MORE_GATES.values()])
@pytest.mark.parametrize('targets', [None, SUBSET], ids=['all', 'subset'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_model_computes_the_equation(family, targets, gates):
    block = mixture_block(gates=gates, **({'targets': targets} if targets else {}))
    model = random_model(family, block)
    base = base_of(model).double()
    without = base(token_ids(2, 6)).logits.detach()
    replace_linears(base, model)
    with torch.no_grad():
        expected, actual = base(token_ids(2, 6)).logits, model(token_ids(2, 6)).logits
    largest = expected.abs().max()
    assert (actual - expected).abs().max() < 2e-5 * largest
    assert (without - expected).abs().max() > 0.1 * largest


def test_only_the_targets_are_replaced():
    model = random_model('Qwen2', mixture_block(targets=SUBSET))
    adapted = {name for name, module in model.named_modules() if isinstance(module, MixtureLinear)}
    assert adapted == set(parse_mixture(model.config.mixture).module_names(2))
    names = model.state_dict().keys()
    assert 'model.layers.1.self_attn.q_proj.base.bias' in names
    assert 'model.layers.1.self_attn.k_proj.bias' in names


# Gates.


@pytest.mark.parametrize('kind', GATES)
@pytest.mark.parametrize('scores', SCORES)
def test_gates_are_those_of_the_reference(kind, scores):
    block = mixture_block(gates=gates_object(kind=kind, scores=scores), top_k=3)
    logits, offset = 2 * torch.randn(200, 6), torch.randn(6)
    expected = [
        reference.expert_gates(each, offset.double().numpy(), block)
        for each in logits.double().numpy()
    ]
    found = top_k_gates(logits, 3, kind, scores, offset)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(top_k_gates(logits, 3, kind, scores), expected, atol=1e-3)


@pytest.mark.parametrize('scores', SCORES)
def test_gates_with_the_offset_are_those_of_the_reference(scores):
    block = mixture_block(gates=gates_object(scores=scores, offset_in_gates=True), top_k=3)
    logits, offset = 2 * torch.randn(200, 6), torch.randn(6)
    expected = [
        reference.expert_gates(each, offset.double().numpy(), block)
        for each in logits.double().numpy()
    ]
    found = top_k_gates(logits, 3, 'softmax', scores, offset, offset_in_gates=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # The gates of a threshold have its bias in any case.
    without = top_k_gates(logits, 3, 'softmax', scores, offset)
    assert np.allclose(without, expected, atol=1e-3) == (scores == 'threshold')


def test_the_lower_index_wins_a_tie():
    gates = top_k_gates(torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), 2, 'equal')
    assert gates.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]]


def test_the_lower_index_wins_among_many_experts():
    gates = top_k_gates(torch.zeros(3, 64), 7, 'renormalized')
    assert (gates > 0).nonzero()[:, 1].tolist() == [*range(7)] * 3


# Gradients.


@pytest.mark.parametrize('gates', GATES)
def test_gradients_reach_the_mixture(gates):
    model = random_model('Llama', mixture_block(gates=gates))
    ids = token_ids(2, 8)
    model(ids, labels=ids).loss.backward()
    for name, module in model.named_modules():
        if isinstance(module, MixtureLinear):
            for part in (module.base, module.down, module.up):
                assert part.weight.grad.abs().max() > 0, name
            # Equal gates do not depend on the probabilities.
            gradient = module.router.weight.grad
            assert (gradient is None) if gates == 'equal' else (gradient.abs().max() > 0), name


def test_gradients_equal_finite_differences():
    layer = random_linear(mixture_block(gates='renormalized'))
    x, direction = torch.randn(9, 16), torch.randn(9, 12)
    (layer(x) * direction).sum().backward()
    for parameter in (layer.down.weight, layer.up.weight, layer.router.weight):
        step = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(layer)
            name = next(key for key, each in layer.named_parameters() if each is parameter)
            moved.get_parameter(name).data += sign * 1e-3 * step
            values.append((moved(x) * direction).sum().item())
        slope = (values[0] - values[1]) / 2e-3
        assert slope == pytest.approx((parameter.grad * step).sum().item(), rel=0.02)


# Precision.


def test_the_router_chooses_in_float32_whatever_the_dtype_of_the_model():
    block = mixture_block(gates='equal', num_experts=8)
    layer = random_linear(block, torch.bfloat16)
    x = torch.randn(4000, 16).bfloat16()
    assert layer.router.weight.dtype == torch.float32
    logits = layer.router(x)
    assert logits.dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
    expected = reference.token_gates(
        x.double().numpy(), layer.router.weight.detach().double().numpy(), block
    )
    np.testing.assert_allclose(top_k_gates(logits, 2, 'equal').detach(), expected)
    rounded = x @ layer.router.weight.bfloat16().T
    assert not np.allclose(top_k_gates(rounded.float(), 2, 'equal').detach(), expected)


def test_autocast_leaves_the_router_in_float32():
    layer = random_linear(mixture_block())
    x = torch.randn(50, 16)
    expected = layer.router(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(layer.router(x), expected, rtol=0, atol=0)
        assert layer(x).dtype == torch.bfloat16
