"""Training steps compiled for devices that are not attached, and checks of their programs."""

import functools
import math
from collections.abc import Iterable

import jax

from configs import intra_domain
from malora_jax.distributed import hlo
from malora_jax.distributed.mesh import make_mesh
from malora_jax.distributed.topology import get_topology
from malora_jax.models import ModelConfig
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
