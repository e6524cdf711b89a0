"""Device mesh of a run: data parallelism, FSDP, tensor parallelism and expert parallelism."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from malora_jax import errors

MESH_AXES = ('data', 'fsdp', 'tensor', 'expert')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh.

    At most one axis may be -1: it takes all remaining devices.

    Attributes:
        data: Devices for data parallelism. Each has different rows (sequences) of the batch, and a
            replica of the model.
        fsdp: Devices for fully sharded data parallelism (FSDP, ZeRO). Each has different rows and a
            shard of the parameters, which are gathered layer by layer.
        tensor: Devices for tensor parallelism. Each computes some of the attention heads and hidden
            units for the same rows.
        expert: Devices for expert parallelism. Each computes some of the experts for the same rows.

    Raises:
        UserError: A size is neither positive nor -1, or several are -1.

    Example:
        FSDP over 4 devices, and data parallelism over the others:

            mesh = make_mesh(MeshConfig(data=-1, fsdp=4))
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self):
        errors.check_types('mesh', self)
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise errors.out_of_range(
                    f'mesh.{axis}', size, 'at least 1, or -1 for all remaining devices'
                )
        if self._sizes.count(-1) > 1:
            raise errors.UserError(
                'mesh has -1 for several axes; only one axis can take the remaining devices.'
            )

    @property
    def _sizes(self) -> list[int]:
        return [getattr(self, axis) for axis in MESH_AXES]

    def shape(self, devices: int, rows: int | None = None) -> tuple[int, ...]:
        """Return the number of devices along each of `MESH_AXES`, with -1 resolved.

        Args:
            devices: Number of devices.
            rows: Number of rows in a batch. If given, some devices may stay unused, so that the
                rows split evenly over the data and FSDP axes.

        Raises:
            UserError: The sizes do not fit this number of devices.
        """
        sizes = self._sizes
        fixed_size = math.prod(size for size in sizes if size != -1)
        rest = devices // fixed_size
        if rest == 0 or (rows is None and (devices % fixed_size or (rest > 1 and -1 not in sizes))):
            requested = ', '.join(
                f'{axis} {size}' for axis, size in zip(MESH_AXES, sizes, strict=True)
            )
            raise errors.UserError(
                f'mesh ({requested}) does not fit {devices} devices: the product of the sizes must '
                f'be {devices}, where -1 takes all remaining devices.'
            )
        if rows is not None and -1 in (self.data, self.fsdp):
            others = self.fsdp if self.data == -1 else self.data
            divisors = [each for each in range(1, rest + 1) if rows % (each * others) == 0]
            rest = max(divisors, default=1)
        return tuple(rest if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Return the mesh of all devices, or of those given, with axis names `MESH_AXES`.

    Raises:
        UserError: The sizes do not fit the number of devices.
    """
    mesh_devices = jax.devices() if devices is None else devices
    return _mesh(config.shape(len(mesh_devices)), mesh_devices)


def use_mesh(config: MeshConfig, rows: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which arrays are sharded over the mesh of all devices.

    If only one device is used, the context does nothing. If a batch does not split evenly over all
    devices, a single-process run uses fewer devices and prints a message.

    Args:
        config: Number of devices along each axis.
        rows: Number of rows in a batch.

    Raises:
        UserError: The sizes do not fit the number of devices.
    """
    devices = jax.devices()
    shape = config.shape(len(devices), rows if jax.process_count() == 1 else None)
    num_used = math.prod(shape)
    if num_used < len(devices):
        print(
            f'Using only {num_used} of {len(devices)} devices, because of mesh and '
            f'data.batch_size ({rows}).'
        )
    return (
        jax.set_mesh(_mesh(shape, devices[:num_used])) if num_used > 1 else contextlib.nullcontext()
    )


def _mesh(shape: tuple[int, ...], devices: Sequence[Any]) -> jax.sharding.Mesh:
    # A mesh axis may be only part of a physical axis of a TPU's interconnect.
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.Mesh(array, MESH_AXES, axis_types=types)
