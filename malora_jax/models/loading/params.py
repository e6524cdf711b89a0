"""The decoder's `params` from a weight file, a block of rows at a time, and back into tensors."""

import concurrent.futures
import functools
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from malora_jax import errors
from malora_jax.adapters.trees import named_leaves
from malora_jax.models.config import ModelConfig
from malora_jax.models.loading import names as names_lib

# About so many scalars are read at once.
_BLOCK = 2**18
_ALIGNMENT = 64
# So many tensors are read at the same time.
_READERS = 4


class WeightFile(Protocol):
    """What is read from: one file or several that belong together.

    Attributes:
        path: where it is, for messages.
        file_format: whose names the tensors have.
    """

    path: pathlib.Path
    file_format: names_lib.Format

    @property
    def names(self) -> Collection[str]:
        """Names of the tensors, those that follow from the config left out."""
        ...

    def blocks(self, name: str, shape: tuple[int, ...], rows: int) -> Iterator[np.ndarray]:
        """The tensor as consecutive blocks of that many rows, the last one shorter.

        Raises:
            UserError: there is no such tensor, it has another shape, or it is stored in a way
                that cannot be read.
        """
        ...


def load_params(file: WeightFile, config: ModelConfig) -> dict[str, Any]:
    """The decoder's `params` collection.

    At no time is there more than a few blocks of rows besides the tree itself.

    Raises:
        UserError: a tensor is missing, has another shape or a value that is not finite, or belongs
            to no part of the model.
    """
    leaves = names_lib.leaves(config, file.file_format)
    _check_names(file, config, leaves)
    for leaf in leaves:  # All shapes before any memory: a wrong size may be a very large one.
        for name in leaf.names:
            next(file.blocks(name, leaf.tensor_shape, 1))
    arrays = [_aligned(leaf.shape, leaf.dtype) for leaf in leaves]
    fills = [fill for pair in zip(leaves, arrays, strict=True) for fill in _fills(*pair)]
    # Most of the time memory is touched for the first time: a matter for several cores.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(functools.partial(_fill, file), *zip(*fills, strict=True)))
    paths = [leaf.path for leaf in leaves]
    return unflatten_dict(dict(zip(paths, map(jax.device_put, arrays), strict=True)), sep='/')


def to_huggingface(config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a decoder under the names and in the shapes of `transformers`."""
    values = dict(named_leaves(params))
    tensors = {}
    for leaf in names_lib.leaves(config, 'huggingface'):
        array = np.asarray(values[leaf.path])
        layers = array if leaf.path.startswith('layers/') else array[None]
        for name, layer in zip(leaf.names, layers, strict=True):
            tensors[name] = np.ascontiguousarray(layer.T if leaf.transposed else layer)
    return tensors


def _check_names(file: WeightFile, config: ModelConfig, leaves: list[names_lib.Leaf]) -> None:
    """Checks that the file has what the model needs and nothing else."""
    needed = {name for leaf in leaves for name in leaf.names}
    missing = [name for leaf in leaves for name in leaf.names if name not in file.names]
    if missing:
        raise errors.UserError(f'{file.path} has no tensor {missing[0]!r}.')
    extra = sorted(set(file.names) - needed)
    head, embedding = (names_lib.name(part, file.file_format) for part in ('head', 'embedding'))
    if config.tied and head in extra:
        extra.remove(head)
        shape = (config.vocab_size, config.width)
        rows = _rows(shape)
        pairs = zip(
            file.blocks(head, shape, rows), file.blocks(embedding, shape, rows), strict=True
        )
        if not all(np.array_equal(ours, right) for ours, right in pairs):
            raise errors.UserError(
                f'{file.path} has a head {head!r} that differs from the embedding; model '
                f'{config.name!r} has one matrix for both.'
            )
    if extra:
        raise errors.UserError(
            f'{file.path} has a tensor {extra[0]!r}, for which model {config.name!r} has no place.'
        )


def _fills(leaf: names_lib.Leaf, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a leaf, and where each goes: into a layer, or into the leaf itself."""
    layers = array if leaf.path.startswith('layers/') else array[None]
    for name, layer in zip(leaf.names, layers, strict=True):
        yield name, layer.T if leaf.transposed else layer


def _fill(file: WeightFile, name: str, target: np.ndarray) -> None:
    start = 0
    for block in file.blocks(name, target.shape, _rows(target.shape)):
        block = block.astype(np.float32, copy=False)
        # NaN spreads to both, and no copy is made as with isfinite.
        if not np.isfinite([block.min(), block.max()]).all():
            raise errors.UserError(
                f'{file.path}: tensor {name!r} has a value that is not finite (NaN or infinity).'
            )
        target[start : start + len(block)] = block
        start += len(block)


def _rows(shape: tuple[int, ...]) -> int:
    return max(1, _BLOCK // shape[-1]) if len(shape) > 1 else shape[0]


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array whose memory JAX takes over as it is on a CPU, instead of copying it."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
