"""Training steps and attention compiled for devices that are not attached, and their checks."""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from configs import intra_domain
from malora_jax.benchmark.attention_check import Packing, value_and_gradients
from malora_jax.distributed import hlo
from malora_jax.distributed.mesh import make_mesh
from malora_jax.distributed.topology import get_topology
from malora_jax.models import ModelConfig, attention_backends
from malora_jax.training import run_config
from malora_jax.training.topology_compile import compiled_step

EXPERTS = 8


@functools.cache
def compile_step(
    method: str, model: str, topology: str, rows: int, length: int
) -> jax.stages.Compiled:
    """Compile a step in bfloat16, with FSDP over all devices.

    Args:
        method: Name of the method, with `EXPERTS` experts if it has any.
        model: Preset of the base model.
        topology: Name of the topology.
        rows: Rows per device.
        length: Tokens per row.
    """
    devices = get_topology(topology).devices
    config = intra_domain.get_config(method)
    config.model.name = model
    config.model.dtype = 'bfloat16'
    config.mesh.fsdp = len(devices)
    config.data.batch_size = rows * len(devices)
    config.data.sequence_length = length
    run = run_config(config.to_dict())
    assert method == 'lora' or run.adapter.num_experts == EXPERTS
    return compiled_step(run, make_mesh(run.mesh, devices))


@functools.cache
def compile_attention(
    backend: str, topology: str, length: int, heads: int, kv_heads: int, width: int, dtype: str
) -> jax.stages.Compiled:
    """Compile the value and the gradients of attention for one row on one device.

    Args:
        backend: Attention backend.
        topology: Name of the topology.
        length: Tokens of the row.
        heads: Number of query heads.
        kv_heads: Number of key/value heads.
        width: Width of a head.
        dtype: Dtype of queries, keys and values.
    """
    place = jax.sharding.SingleDeviceSharding(get_topology(topology).devices[0])

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length, heads, width), dtype, sharding=place)

    segments = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=place)
    packing = Packing(shape(heads), shape(kv_heads), shape(kv_heads), segments, shape(heads))
    function = functools.partial(attention_backends.attend, backend)
    return value_and_gradients.lower(function, packing).compile()


def too_large(
    arrays: Iterable[hlo.HLOArray], model: ModelConfig, rows: int, length: int
) -> list[hlo.HLOArray]:
    """Return the arrays with a value per token, expert and feature, in one layer or stacked.

    Args:
        arrays: Arrays of a program.
        model: Base model configuration.
        rows: Rows per device.
        length: Tokens per row. The number of tokens per device is no other size in the model.
    """
    tokens = rows * length
    # Compilers compute the gate and up projections side by side. A GPU may have another axis before
    # that of the layers.
    most = max(2 * tokens * model.hidden, model.num_heads * tokens * length)
    assert most < tokens * EXPERTS * model.width
    return [
        array
        for array in arrays
        if tokens in array.shape
        and math.prod(array.shape)
        > most * (model.num_layers if model.num_layers in array.shape[:2] else 1)
    ]


def kernels_in_sums(program: hlo.Program, model: ModelConfig, devices: int) -> list[hlo.HLOArray]:
    """Return the arrays in sums over devices that are as large as a kernel or a shard of it.

    Args:
        program: Compiled step.
        model: Base model configuration.
        devices: Number of devices over which kernels are sharded.
    """
    sizes = {model.width * model.width, model.width * model.hidden}
    sizes |= {size // devices for size in sizes}
    return [
        array
        for each in program.collectives()
        if each.kind in ('all-reduce', 'reduce-scatter')
        for array in each.arrays
        if math.prod(array.shape) in sizes
    ]
