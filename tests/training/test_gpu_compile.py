"""A training step of SmolLM2 135M on GPUs, compiled without them; `make test-gpu-plan` runs it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import intra_domain
from malora_jax.distributed import hlo
from malora_jax.distributed.gpus import GPUS
from malora_jax.distributed.topology import disable_device_detection, get_topology
from malora_jax.models import preset
from malora_jax.training import run_config
from malora_jax.training.step import compiled_memory_bytes
from malora_jax.training.topology_compile import compile_for_topology
from tests.helpers.compiled_steps import compile_step, kernels_in_sums, too_large

pytestmark = pytest.mark.gpu

DEVICES = 8
# The number of tokens per GPU is no other size in the model. With fewer tokens, the compiler splits
# the sums of a product and adds the parts later, in arrays that look like those of experts.
ROWS, LENGTH = 4, 320
MODEL = preset('smollm2-135m')


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the GPU compiler alone, but not on import, which CPU and TPU tests do as well."""
    disable_device_detection()


def compiled(method: str):
    return compile_step(method, MODEL.name, f'h100:{DEVICES}', ROWS, LENGTH)


@functools.cache
def program(method: str) -> hlo.Program:
    return hlo.Program(compiled(method).as_text())


def test_collectives_of_a_program_are_counted():
    """One of each kind on 64 float32 numbers per GPU, computed by hand."""
    mesh = jax.sharding.Mesh(np.array(get_topology('h100:8').devices), ('x',))

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec('x'),
        out_specs=(PartitionSpec(), *(PartitionSpec('x') for _ in range(4))),
        check_vma=False,
    )
    def exchange(x_N):
        return (
            jax.lax.psum(x_N, 'x'),
            jax.lax.psum_scatter(2 * x_N, 'x', tiled=True),
            jax.lax.all_gather(3 * x_N, 'x', tiled=True),
            jax.lax.all_to_all(4 * x_N, 'x', 0, 0, tiled=True),
            jax.lax.ppermute(5 * x_N, 'x', [(i, (i + 1) % 8) for i in range(8)]),
        )

    sharding = jax.NamedSharding(mesh, PartitionSpec('x'))
    shape = jax.ShapeDtypeStruct((8 * 64,), 'float32', sharding=sharding)
    text = jax.jit(exchange).lower(shape).compile().as_text()
    assert hlo.Program(text).bytes_by_kind() == {
        'all-reduce': 256,
        'reduce-scatter': 32,
        'all-gather': 2048,
        'all-to-all': 256,
        'collective-permute': 256,
    }


def test_what_it_costs_beside_lora():
    assert compiled_memory_bytes(compiled('malora')) < 1.2 * compiled_memory_bytes(compiled('lora'))


def test_no_buffer_has_tokens_by_experts_by_features():
    assert any(ROWS * LENGTH in array.shape for array in program('malora').arrays())
    assert not too_large(program('malora').arrays(), MODEL, ROWS, LENGTH)


@pytest.mark.parametrize('method', ['malora', 'lora'])
def test_no_sum_over_gpus_has_a_kernel(method):
    """The frozen base model has no gradient, so no part of a kernel is summed either."""
    assert not kernels_in_sums(program(method), MODEL, DEVICES)


def test_each_layer_is_gathered_twice():
    """Shards of all kernels are gathered for the forward and for the backward pass."""
    kernels = 2 * MODEL.width * (MODEL.width + MODEL.num_kv_heads * MODEL.head_width)
    kernels += 3 * MODEL.width * MODEL.hidden
    gathered = program('malora').bytes_by_kind()['all-gather']
    bfloat16 = 2
    layers, embedding = 2 * MODEL.num_layers * kernels, MODEL.vocab_size * MODEL.width
    assert bfloat16 * layers < gathered < 1.2 * bfloat16 * (layers + embedding)


@pytest.mark.parametrize('name', [name for name, gpu in GPUS.items() if gpu.checked])
def test_the_plan_for_each_card(name):
    config = intra_domain.get_config('malora')
    config.model.name, config.model.dtype = 'tiny', 'bfloat16'
    run = run_config(config.to_dict())
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, head_width=64))
    found = compile_for_topology(run, f'{name}:1')
    assert found['attention'] == 'triton'
    assert found['fits'] and found['checked'] and not found['collective_bytes']
    assert (
        found['bytes_per_device'] == sum(found['bytes'].values()) > found['bytes']['temporary'] > 0
    )
    assert 'estimated_cycles' not in found and 'environment' not in found
