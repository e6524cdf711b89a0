"""A training step of LLaMA-2 7B on sixteen chips, compiled for TPU; `make test-tpu` runs it."""

import functools

import pytest

from configs import intra_domain
from malora_jax.adapters import method
from malora_jax.benchmark.compiler_estimates import estimate_layer
from malora_jax.distributed import hlo
from malora_jax.distributed.topology import disable_device_detection
from malora_jax.models import preset
from malora_jax.training import run_config
from malora_jax.training.step import compiled_memory_bytes
from tests.helpers.compiled_steps import EXPERTS, compile_step, kernels_in_sums, too_large

pytestmark = pytest.mark.tpu

CHIPS = 16
# Tokens per chip in one row, a number that is no other size in the model.
TOKENS = 640
MODEL = preset('llama2-7b')


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the TPU compiler alone, but not on import, which CPU and GPU tests do as well."""
    disable_device_detection()


def compiled(method: str):
    return compile_step(method, MODEL.name, 'v5e:4x4', 1, TOKENS)


@functools.cache
def program(method: str) -> hlo.Program:
    return hlo.Program(compiled(method).as_text())


def bytes_per_chip(method: str) -> int:
    return compiled_memory_bytes(compiled(method))


def test_what_is_too_large():
    """The check finds arrays of tokens by experts by features among others."""
    shapes = [(TOKENS, MODEL.hidden), (MODEL.num_layers, TOKENS, MODEL.width)]
    wrong = [(TOKENS, EXPERTS, MODEL.width), (MODEL.num_layers, EXPERTS, TOKENS, MODEL.width)]
    arrays = [hlo.HLOArray('bf16', shape) for shape in (*shapes, *wrong)]
    assert [array.shape for array in too_large(arrays, MODEL, 1, TOKENS)] == wrong


def test_it_fits_with_room():
    """A chip of 16 GB holds 1/16 of the base model, saved activations, and two whole layers."""
    assert bytes_per_chip('malora') < 5.8e9


def test_what_it_costs_beside_lora():
    """With dropout and one row per chip, factors and their update have a large share."""
    assert bytes_per_chip('malora') < 1.16 * bytes_per_chip('lora')
    assert program('malora').cycles() < 1.14 * program('lora').cycles()


def test_a_layer_of_malora_costs_little_more_than_one_of_lora():
    """Without dropout, down-projections and routers read the input once, and write it once."""
    config = intra_domain.get_config('malora')
    config.model.update(name=MODEL.name, dtype='bfloat16', attention='xla')
    config.data.update(batch_size=4, sequence_length=1024)
    adapters = {name: method(name, dropout=0.0) for name in ('lora', 'malora')}
    found = estimate_layer(run_config(config.to_dict()), adapters, 'v5e:2x2')
    assert found['malora']['cycles'] < 1.03 * found['lora']['cycles']


def test_no_buffer_has_tokens_by_experts_by_features():
    assert any(TOKENS in array.shape for array in program('malora').arrays())
    assert not too_large(program('malora').arrays(), MODEL, 1, TOKENS)


@pytest.mark.parametrize('method', ['malora', 'lora'])
def test_no_sum_over_chips_has_a_kernel(method):
    """The frozen base model has no gradient, so no part of a kernel is summed either."""
    assert not kernels_in_sums(program(method), MODEL, CHIPS)
