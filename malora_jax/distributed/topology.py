"""Devices that are not there: the TPU compiler needs only their description."""

import os
from typing import Any

import jax
from jax.experimental import topologies

from malora_jax import errors


def use_compiler_alone() -> None:
    """Has nothing look or wait for a TPU; before anything that uses a device."""
    jax.config.update('jax_platforms', 'cpu')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def tpu_devices(name: str) -> list[Any]:
    """The chips of a topology, to compile for.

    Args:
        name: such as 'v5e:2x2'; see `jax.experimental.topologies`.

    Raises:
        UserError: no such topology, or no compiler for it.
    """
    try:
        return list(topologies.get_topology_desc(name, 'tpu').devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise errors.UserError(
            f'--topology={name} cannot be compiled for ({str(error).splitlines()[0]}); it must '
            'be one that the TPU compiler knows, such as v5e:2x2 or v6e:2x2, with the package '
            'libtpu installed.'
        ) from error
