"""Creation of a sharded array from blocks of its values, for example from blocks of a file.

Blocks are copied into buffers in host memory, one for each shard that local devices hold. When the
buffers are full, they are transferred to the devices.
"""

from typing import Any

import jax
import numpy as np

# Alignment of the buffers in bytes: see `_empty`.
_ALIGNMENT = 64

# Start and stop of a shard along each axis of the whole array.
_Bounds = tuple[tuple[int, int], ...]


class ShardBuffers:
    """Host buffers for the shards of one array that the devices of this process hold."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding | None):
        """Allocate the buffers, uninitialized.

        Args:
            shape: Shape of the whole array.
            dtype: Dtype of the array.
            sharding: Sharding of the array; None puts it on the default device.
        """
        self._shape, self._sharding = shape, sharding
        self._bounds_by_device: dict[Any, _Bounds] = {None: tuple((0, size) for size in shape)}
        if sharding is not None:
            indices = sharding.addressable_devices_indices_map(shape)
            self._bounds_by_device = {
                device: _bounds(index or (), shape) for device, index in indices.items()
            }
        # Devices with the same shard share a buffer.
        self._arrays = {
            bounds: _empty(tuple(end - start for start, end in bounds), dtype)
            for bounds in set(self._bounds_by_device.values())
        }

    def overlaps(self, axis: int, start: int, stop: int) -> bool:
        """Return whether a local shard overlaps the indices `start` to `stop` - 1 of an axis."""
        spans = [bounds[axis] for bounds in self._arrays]
        return any(start < last and first < stop for first, last in spans)

    def put(self, block: np.ndarray, corner: tuple[int, ...]) -> None:
        """Copy a block of the array into the local shards that overlap it.

        Args:
            block: Block with as many axes as the array.
            corner: Index of the block's first entry in the whole array.
        """
        for bounds, array in self._arrays.items():
            common = [
                (max(start, first), min(end, first + size))
                for (start, end), first, size in zip(bounds, corner, block.shape, strict=True)
            ]
            if all(start < end for start, end in common):
                to = _slices(common, [start for start, _ in bounds])
                array[to] = block[_slices(common, corner)]

    def array(self) -> jax.Array:
        """Transfer the buffers to their devices, and return the sharded array."""
        if self._sharding is None:
            return jax.device_put(self._arrays[self._bounds_by_device[None]])
        placed = [
            jax.device_put(self._arrays[bounds], device)
            for device, bounds in self._bounds_by_device.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, placed)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Bounds:
    return tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))


def _slices(common: list[tuple[int, int]], origin: Any) -> tuple[slice, ...]:
    return tuple(
        slice(start - zero, end - zero) for (start, end), zero in zip(common, origin, strict=True)
    )


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an uninitialized, aligned array.

    Because of the alignment, a JAX array on CPU can share this memory instead of copying it.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
