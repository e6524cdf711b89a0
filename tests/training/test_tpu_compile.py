"""A training step of LLaMA-2 7B on sixteen chips, compiled for TPU; `make test-tpu` runs it."""

import functools
import math

import pytest

from configs import intra_domain
from malora_jax.distributed import hlo
from malora_jax.distributed.mesh import make_mesh
from malora_jax.distributed.topology import disable_tpu_detection, tpu_devices
from malora_jax.models import preset
from malora_jax.training import run_config
from malora_jax.training.step import compiled_memory_bytes
from malora_jax.training.tpu_compile import compiled_step

pytestmark = pytest.mark.tpu

CHIPS = 16
# Tokens per chip, a number that is no other size in the model.
TOKENS = 640
MODEL = preset('llama2-7b')
EXPERTS = 8


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the TPU compiler alone, but not on import, which CPU and GPU tests do as well."""
    disable_tpu_detection()


@functools.cache
def compiled(method: str):
    config = intra_domain.get_config(method)
    config.model.name = MODEL.name
    config.model.dtype = 'bfloat16'
    config.mesh.fsdp = CHIPS
    config.data.batch_size = CHIPS
    config.data.sequence_length = TOKENS
    run = run_config(config.to_dict())
    assert method == 'lora' or run.adapter.num_experts == EXPERTS
    return compiled_step(run, make_mesh(run.mesh, tpu_devices('v5e:4x4')))


@functools.cache
def program(method: str) -> hlo.Program:
    return hlo.Program(compiled(method).as_text())


def bytes_per_chip(method: str) -> int:
    return compiled_memory_bytes(compiled(method))


def too_large(arrays) -> list[hlo.HLOArray]:
    """Return the arrays with a value per token, expert and feature, in one layer or stacked."""
    most = max(TOKENS * MODEL.hidden, MODEL.num_heads * TOKENS**2)
    assert most < TOKENS * EXPERTS * MODEL.width
    return [
        array
        for array in arrays
        if TOKENS in array.shape
        and math.prod(array.shape[array.shape[0] == MODEL.num_layers :]) > most
    ]


def test_what_is_too_large():
    """The check finds arrays of tokens by experts by features among others."""
    shapes = [(TOKENS, MODEL.hidden), (MODEL.num_layers, TOKENS, MODEL.width)]
    wrong = [(TOKENS, EXPERTS, MODEL.width), (MODEL.num_layers, EXPERTS, TOKENS, MODEL.width)]
    found = too_large([hlo.HLOArray('bf16', shape) for shape in (*shapes, *wrong)])
    assert [array.shape for array in found] == wrong


def test_it_fits_with_room():
    """A chip of 16 GB holds 1/16 of the base model, saved activations, and two whole layers."""
    assert bytes_per_chip('malora') < 6.6e9


def test_what_it_costs_beside_lora():
    """With dropout and one row per chip, factors and their update have a large share."""
    assert bytes_per_chip('malora') < 1.2 * bytes_per_chip('lora')
    assert program('malora').cycles() < 1.15 * program('lora').cycles()


def test_no_buffer_has_tokens_by_experts_by_features():
    assert any(TOKENS in array.shape for array in program('malora').arrays())
    assert not too_large(program('malora').arrays())


@pytest.mark.parametrize('method', ['malora', 'lora'])
def test_no_sum_over_chips_has_a_kernel(method):
    """The frozen base model has no gradient, so no part of a kernel is summed either."""
    sizes = {MODEL.width * MODEL.width, MODEL.width * MODEL.hidden}
    for each in program(method).collectives():
        if each.kind in ('all-reduce', 'reduce-scatter'):
            for array in each.arrays:
                assert math.prod(array.shape) not in sizes | {size // CHIPS for size in sizes}
