"""Ahead-of-time compilation for TPUs without TPUs, from the description of a topology."""

import os
from typing import Any

import jax
from jax.experimental import topologies

from malora_jax import errors


def disable_tpu_detection() -> None:
    """Keep JAX and libtpu from looking for a TPU; call this before anything uses a device."""
    jax.config.update('jax_platforms', 'cpu')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def tpu_devices(name: str) -> list[Any]:
    """Return the devices of a TPU topology, as targets of ahead-of-time compilation.

    Args:
        name: Topology for `jax.experimental.topologies`, such as 'v5e:2x2'.

    Raises:
        UserError: There is no such topology, or libtpu is not installed.
    """
    try:
        return list(topologies.get_topology_desc(name, 'tpu').devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise errors.UserError(
            f'--topology={name} cannot be compiled for ({str(error).splitlines()[0]}); it must '
            'be one that the TPU compiler knows, such as v5e:2x2 or v6e:2x2, with the package '
            'libtpu installed.'
        ) from error
