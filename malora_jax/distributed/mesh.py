"""The mesh that the devices of a run form."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from malora_jax import errors

AXES = ('data', 'fsdp', 'tensor', 'expert')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis; -1, once, is all that are left.

    Attributes:
        data: each with rows of its own and a whole copy of the model.
        fsdp: each with rows of its own and a share of the model, gathered layer by layer.
        tensor: devices that compute the same rows, each some heads and hidden units.
        expert: devices that compute the same rows, each some of the experts.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self):
        errors.check_types('mesh', self)
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise errors.out_of_range(f'mesh.{axis}', size, 'at least 1, or -1 for the rest')
        if self._sizes.count(-1) > 1:
            raise errors.UserError('mesh has -1 for several axes; only one can be the rest.')

    @property
    def _sizes(self) -> list[int]:
        return [getattr(self, axis) for axis in AXES]

    def shape(self, devices: int, rows: int | None = None) -> tuple[int, ...]:
        """Devices along each of `AXES`.

        Args:
            devices: how many there are.
            rows: of a batch; if given, fewer devices will do: those that share them evenly.

        Raises:
            UserError: so many devices do not form such a mesh.
        """
        sizes = self._sizes
        given = math.prod(size for size in sizes if size != -1)
        rest = devices // given
        if rest == 0 or (rows is None and (devices % given or (rest > 1 and -1 not in sizes))):
            asked = ', '.join(f'{axis} {size}' for axis, size in zip(AXES, sizes, strict=True))
            raise errors.UserError(
                f'mesh ({asked}) does not fit {devices} devices: the product must be {devices}, '
                'and -1 stands for what is left.'
            )
        if rows is not None and -1 in (self.data, self.fsdp):
            others = self.fsdp if self.data == -1 else self.data
            fitting = [each for each in range(1, rest + 1) if rows % (each * others) == 0]
            rest = max(fitting, default=1)
        return tuple(rest if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of all devices, or of those given, with names `AXES`.

    Raises:
        UserError: they do not form such a mesh.
    """
    found = jax.devices() if devices is None else devices
    return _mesh(config.shape(len(found)), found)


def on_all_devices(config: MeshConfig, rows: int) -> contextlib.AbstractContextManager[Any]:
    """Within it arrays are split over the mesh of all devices; on one device it does nothing.

    In one process devices stay idle that batches of so many rows cannot be shared with.

    Raises:
        UserError: the devices do not form such a mesh.
    """
    devices = jax.devices()
    shape = config.shape(len(devices), rows if jax.process_count() == 1 else None)
    used = math.prod(shape)
    if used < len(devices):
        print(f'{used} of {len(devices)} devices are used, by mesh and data.batch_size ({rows}).')
    return jax.set_mesh(_mesh(shape, devices[:used])) if used > 1 else contextlib.nullcontext()


def _mesh(shape: tuple[int, ...], devices: Sequence[Any]) -> jax.sharding.Mesh:
    # Axes need not be those of the wires between chips.
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(array, AXES, axis_types=types)
