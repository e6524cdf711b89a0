"""The gate and the products, against float64 NumPy."""

import numpy as np
import pytest
import tiny_llama
import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.layers import LoRAMapping

from malora_vllm.gate import SlotTable, apply_gates
from malora_vllm.mixture import GATES, MAX_EXPERTS, Mixture
from malora_vllm.wrappers import GatedPunicaWrapperCPU, GatedWrapper

COLUMNS = 64


def mixture(num_experts=4, rank=3, top_k=2, gates='softmax', router_parts=1):
    return Mixture(num_experts, rank, top_k, 1.0, gates, ('q_proj',), router_parts)


def expected_output(row_P, settings):
    """The gated buffer of one token."""
    if settings is None:
        return row_P
    experts, columns = settings.num_experts, settings.num_experts * settings.rank
    logits_E = row_P[columns : columns + experts]
    if settings.router_parts == 2:
        logits_E = logits_E + row_P[columns + experts : columns + 2 * experts]
    gates_E = tiny_llama.gates(logits_E[None], settings.top_k, settings.gates)[0]
    result_P = np.zeros_like(row_P)
    result_P[:columns] = row_P[:columns] * np.repeat(gates_E, settings.rank)
    return result_P


def check(mixtures, hidden_LNP, slots, tolerance=1e-6, max_experts=None):
    """Compare the gate with the expectation; mixtures holds the adapter of each slot."""
    table = SlotTable(len(mixtures), COLUMNS, 'cpu')
    for slot, settings in enumerate(mixtures):
        table.set_mixture(slot, settings)
    slot_N = torch.tensor(slots)
    width = max_experts or int(table.num_experts(slot_N).max())
    result_LNP = apply_gates(hidden_LNP, table.token_routes(slot_N, width))
    assert result_LNP.dtype == hidden_LNP.dtype
    adapters = [*mixtures, None]
    expected_LNP = [
        [expected_output(row_P, adapters[slot]) for row_P, slot in zip(rows_NP, slots, strict=True)]
        for rows_NP in hidden_LNP.double().numpy()
    ]
    np.testing.assert_allclose(result_LNP.double(), expected_LNP, rtol=tolerance, atol=tolerance)


def random_buffer(slices, tokens):
    return torch.randn(slices, tokens, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('router_parts', [1, 2])
@pytest.mark.parametrize('top_k', [1, 2, 5])
@pytest.mark.parametrize('gates', GATES)
def test_one_mixture(gates, top_k, router_parts):
    settings = mixture(5, 3, top_k, gates, router_parts)
    check([settings], random_buffer(1, 50), [0] * 50)


@pytest.mark.parametrize('max_experts', [8, MAX_EXPERTS])
def test_mixtures_loras_and_base_model_in_one_batch(max_experts):
    mixtures = [
        mixture(8, 5, 2, 'softmax', 2),
        None,
        mixture(2, 31, 1, 'renormalized', 1),
        mixture(7, 2, 3, 'equal', 2),
        mixture(1, 62, 1, 'softmax', 2),
    ]
    slots = [0, -1, 3, 1, 4, 2, 0, 1, -1, 3, 2, 2] * 5
    check(mixtures, random_buffer(3, len(slots)), slots, max_experts=max_experts)


@pytest.mark.parametrize('gates', GATES)
def test_ties_go_to_lower_indices(gates):
    settings = mixture(6, 2, 3, gates)
    hidden_LNP = random_buffer(2, 40)
    # Few different logits: most tokens have equal ones at the border of the top k.
    hidden_LNP[..., 12:18] = hidden_LNP[..., 12:18].sign()
    check([settings], hidden_LNP, [0] * 40)


def test_unlikely_expert_precedes_experts_that_the_adapter_lacks():
    settings = mixture(3, 2, 3, 'equal')
    hidden_LNP = random_buffer(1, 1)
    # The probabilities of the other experts round to zero.
    hidden_LNP[..., 6:9] = torch.tensor([1e4, 0.0, -1e4])
    check([settings, mixture(8, 2, 1)], hidden_LNP, [0], max_experts=8)


def test_full_buffer():
    check([mixture(16, 2, 4, 'softmax', 2)], random_buffer(1, 20), [0] * 20)


def test_bfloat16_buffer():
    # The gates are computed in float32; only the product is rounded to bfloat16.
    hidden_LNP = random_buffer(2, 60).bfloat16()
    check([mixture(8, 5, 2, 'softmax', 2), None], hidden_LNP, [0, 1, -1] * 20, tolerance=2**-8)


def test_slot_of_a_mixture_is_given_to_a_lora():
    table = SlotTable(1, COLUMNS, 'cpu')
    hidden_LNP = random_buffer(1, 3)
    slot_N = torch.zeros(3, dtype=torch.long)
    table.set_mixture(0, mixture())
    table.set_mixture(0, None)
    assert torch.equal(apply_gates(hidden_LNP, table.token_routes(slot_N, 4)), hidden_LNP)


def test_base_model_ignores_an_uninitialized_buffer():
    # On a GPU, tokens without an adapter leave their part of the buffer unwritten.
    table = SlotTable(1, COLUMNS, 'cpu')
    table.set_mixture(0, mixture())
    routes = table.token_routes(torch.tensor([-1, 0]), MAX_EXPERTS)
    hidden_LNP = random_buffer(1, 2)
    expected = apply_gates(hidden_LNP, routes)[:, 1]
    hidden_LNP[:, 0] = torch.nan
    assert torch.equal(apply_gates(hidden_LNP, routes)[:, 1], expected)


class _Expand:
    """Stands for vLLM's GPU kernels."""

    def __init__(self, max_num_batched_tokens, max_batches, device, **kwargs):
        self._token_lora_indices = torch.empty(max_num_batched_tokens, dtype=torch.long)

    def add_expand(self, y, x, lora_b_stacked, output_slices, **kwargs):
        for hidden_NP, b_FP in zip(x, lora_b_stacked, strict=True):
            y += hidden_NP @ b_FP.T


class _GatedExpand(GatedWrapper, _Expand):
    """Built like GatedPunicaWrapperGPU."""


def test_gate_compiles_without_graph_breaks_for_any_number_of_tokens():
    config = LoRAConfig(max_lora_rank=COLUMNS, max_loras=2)
    wrapper = _GatedExpand(100, 4, 'cpu', lora_config=config)
    b_FP = torch.randn(7, COLUMNS)

    def run(x_LNP):
        y_NF = torch.zeros(x_LNP.shape[1], 7)
        wrapper.add_expand(y_NF, x_LNP, (b_FP,), (7,), add_inputs=True)
        return y_NF

    # 'aot_eager' traces with fake tensors, so that waiting for a value would fail.
    compiled = torch.compile(run, backend='aot_eager', fullgraph=True, dynamic=True)
    for tokens in (13, 57):
        x_LNP = random_buffer(1, tokens)
        for settings in (None, mixture(), mixture(8, 2, 3, 'equal', 2)):
            wrapper.set_mixture(0, settings)
            wrapper._token_lora_indices[:tokens] = torch.arange(tokens) % 2 - 1
            torch.testing.assert_close(compiled(x_LNP), run(x_LNP))
    assert not torch.equal(run(x_LNP), x_LNP[0] @ b_FP.T)


def make_cpu_wrapper(columns, slots, token_slots):
    """A wrapper with adapter IDs 1, 2, … in its slots and tokens of the given slots."""
    config = LoRAConfig(max_lora_rank=columns, max_loras=slots)
    wrapper = GatedPunicaWrapperCPU(256, 8, 'cpu', lora_config=config)
    mapping = LoRAMapping(tuple(slot + 1 for slot in token_slots), (0,), is_prefill=True)
    wrapper.update_metadata(mapping, list(range(1, slots + 1)), slots + 1, 100)
    return wrapper


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_grouped_products_of_loras_and_base_model(dtype):
    generator = torch.Generator().manual_seed(1)
    slots = [1, -1, 0, 1, 1, -1, 0]
    # Two slices of different sizes; slot 2 is loaded but has no token.
    sizes, inputs = (6, 4), 10
    x_ND = torch.randn(len(slots), inputs, generator=generator).to(dtype)
    a = tuple(torch.randn(3, 1, COLUMNS, inputs, generator=generator).to(dtype) for _ in sizes)
    b = tuple(torch.randn(3, 1, size, COLUMNS, generator=generator).to(dtype) for size in sizes)
    y_NF = torch.randn(len(slots), sum(sizes), generator=generator).to(dtype)
    expected_NF = y_NF.double()
    for token, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                b_each[slot, 0].double() @ (a_each[slot, 0].double() @ x_ND[token].double())
                for a_each, b_each in zip(a, b, strict=True)
            ]
            expected_NF[token] += 0.5 * torch.cat(parts)
    make_cpu_wrapper(COLUMNS, 3, slots).add_lora_linear(y_NF, x_ND, a, b, 0.5, sizes)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(y_NF.double(), expected_NF, rtol=rounding, atol=1e-4)


def test_mixture_is_loaded_into_the_slot_of_the_current_batch():
    wrapper = make_cpu_wrapper(COLUMNS, 1, [0, -1])
    x_LNP, b_FP = random_buffer(1, 2), torch.randn(1, 1, 3, COLUMNS)

    def output():
        y_NF = torch.zeros(2, 3)
        wrapper.add_expand(y_NF, x_LNP, (b_FP,), (3,))
        return y_NF

    ungated_NF = x_LNP[0] @ b_FP[0, 0].T * torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(output(), ungated_NF)
    wrapper.set_mixture(0, mixture())
    gated_NF = output()
    assert not torch.allclose(gated_NF[0], ungated_NF[0])
    assert not gated_NF[1].any()
    wrapper.set_mixture(0, None)
    torch.testing.assert_close(output(), ungated_NF)


def test_stock_cpu_kernels_give_base_model_tokens_an_adapter():
    """Documents why the plugin replaces the products: remove them when this test fails."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(16, 2, 'cpu')
    mapping = LoRAMapping((1, 0), (1, 0), is_prefill=True)
    wrapper.update_metadata(mapping, [1], 2, 100)
    y_NF = torch.zeros(2, 3)
    wrapper.add_lora_linear(
        y_NF, torch.ones(2, 5), (torch.ones(1, 1, 4, 5),), (torch.ones(1, 1, 3, 4),), 1.0, (3,)
    )
    assert y_NF[1].any()


@pytest.mark.parametrize('name', tiny_llama.MIXTURES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_mixture_from_its_file(name, dtype):
    settings = tiny_llama.ADAPTERS[name]
    module, (a_PD, b_FP) = next(iter(tiny_llama.factors(name).items()))
    arrays = [array.astype(np.float64) for array in tiny_llama.adapter_tensors(name)[module]]
    parsed = Mixture(**{**settings, 'targets': tuple(settings['targets'])})
    a = torch.zeros(1, 1, 128, a_PD.shape[1], dtype=dtype)
    b = torch.zeros(1, 1, b_FP.shape[0], 128, dtype=dtype)
    a[0, 0, : len(a_PD)] = a_PD
    b[0, 0, :, : b_FP.shape[1]] = settings['scale'] * b_FP
    tokens = 200
    x_ND = torch.randn(tokens, a_PD.shape[1], generator=torch.Generator().manual_seed(2))
    x_ND = x_ND.to(dtype)
    y_NF = torch.zeros(tokens, b_FP.shape[0])
    wrapper = make_cpu_wrapper(128, 1, [0] * tokens)
    wrapper.set_mixture(0, parsed)
    wrapper.add_lora_linear(y_NF, x_ND, (a,), (b,), 1.0, (b_FP.shape[0],))

    x_ND = x_ND.double().numpy()
    gates_NE = tiny_llama.gates(x_ND @ arrays[2].T, parsed.top_k, parsed.gates)
    expected_NF = tiny_llama.mixture_update(x_ND, arrays[0], arrays[1], gates_NE, parsed.scale)
    errors_N = np.linalg.norm(y_NF.double().numpy() - expected_NF, axis=1)
    errors_N /= np.linalg.norm(expected_NF, axis=1)
    if dtype == torch.float32:
        assert errors_N.max() < 1e-4
    elif parsed.router_parts == 2:
        # Another choice of experts would make an error of 0.1 or more.
        assert errors_N.max() < 0.02
    else:
        # A router that is stored once loses its precision, so that some choices change.
        assert np.median(errors_N) < 0.02
