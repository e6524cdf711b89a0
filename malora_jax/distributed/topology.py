"""Ahead-of-time compilation for devices that are not attached, from the name of a topology.

The name of a TPU slice has the shape of the slice, such as 'v5e:4x4'. The name of GPUs has their
number, such as 'h100:8'.
"""

import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from malora_jax import errors
from malora_jax.distributed.gpus import GPU, GPUS

# Maximum number of GPUs of one host. More GPUs are hosts of this size.
_GPUS_PER_HOST = 8


class Topology(NamedTuple):
    """Devices as targets of ahead-of-time compilation.

    Attributes:
        name: Name of the topology.
        devices: Devices, which need not be attached to this host.
        gpu: Figures of each GPU; None for a TPU slice.
    """

    name: str
    devices: list[Any]
    gpu: GPU | None = None


def disable_device_detection() -> None:
    """Keep JAX from looking for TPUs and GPUs; call this before anything uses a device."""
    jax.config.update('jax_platforms', 'cpu')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def get_topology(name: str) -> Topology:
    """Return the devices of a topology.

    Args:
        name: TPU slice that `jax.experimental.topologies` knows, such as 'v5e:2x2'; or a key of
            `GPUS` and a number, such as 'h100:8'.

    Raises:
        UserError: There is no such topology, or the compiler for it is not installed.
    """
    kind, _, count = name.partition(':')
    if kind in GPUS or count.isdecimal():
        return _gpu_topology(name, kind, count)
    try:
        return Topology(name, list(topologies.get_topology_desc(name, 'tpu').devices))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise errors.UserError(
            f'--topology={name} cannot be compiled for ({str(error).splitlines()[0]}); it must '
            'be one that the TPU compiler knows, such as v5e:2x2 or v6e:2x2, with the package '
            'libtpu installed, or a number of GPUs, such as h100:8.'
        ) from error


def _gpu_topology(name: str, kind: str, count: str) -> Topology:
    if kind not in GPUS:
        raise errors.out_of_range(
            '--topology', name, f'GPU:NUMBER with GPU one of {", ".join(GPUS)}, or a TPU slice'
        )
    number = int(count) if count.isdecimal() and len(count) < 6 else 0
    if not number or (number > _GPUS_PER_HOST and number % _GPUS_PER_HOST):
        raise errors.out_of_range(
            '--topology',
            name,
            f'{kind}:NUMBER with 1 to {_GPUS_PER_HOST} GPUs, or a multiple of {_GPUS_PER_HOST}',
        )
    hosts = -(-number // _GPUS_PER_HOST)
    try:
        found = topologies.get_topology_desc(
            platform='cuda',
            topology_name=kind,
            # Numbers of slices, of hosts per slice, and of GPUs per host.
            topology=f'1x{hosts}x{number // hosts}',
            target_config=GPUS[kind].target_config(),
        )
    except NotImplementedError as error:
        problem = f"--topology={name} needs JAX's plugin for CUDA, but no GPU"
        raise errors.missing_extra(problem, 'gpu-plan') from error
    return Topology(name, list(found.devices), GPUS[kind])
