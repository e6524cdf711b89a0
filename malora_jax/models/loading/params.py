"""Loading of the decoder's `params` from weight files, block by block; and export of `params`."""

import concurrent.futures
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax import errors
from malora_jax.adapters.trees import named_leaves
from malora_jax.distributed import sharding
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder, abstract_variables
from malora_jax.models.loading import tensor_names
from malora_jax.models.loading.shard_buffers import ShardBuffers
from malora_jax.models.quantize import codes_dtype, quantize, quantized_shapes

# Approximate number of scalars in a block that is read at once.
_BLOCK_SIZE = 2**18
# Number of threads, each of which reads one tensor at a time.
_READERS = 4


class WeightFile(Protocol):
    """Protocol of a source of weights: a file, or several shards of one model.

    Attributes:
        path: Path of the file, or of the directory with the shards; used in messages.
        file_format: Format, which determines the names of the tensors.
    """

    path: pathlib.Path
    file_format: tensor_names.Format

    @property
    def names(self) -> Collection[str]:
        """Names of the weights, without tensors that the config determines (RoPE frequencies)."""
        ...

    def read_rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Read the rows `start` to `stop` - 1 of a tensor, and no others.

        Args:
            name: Name of the tensor.
            shape: Expected shape of the whole tensor.
            start: Index of the first row.
            stop: Index after the last row.

        Raises:
            UserError: There is no such tensor, it has another shape, or its format is unsupported.
        """
        ...


def load_params(file: WeightFile, config: ModelConfig) -> dict[str, Any]:
    """Load the decoder's `params` collection, sharded if a mesh is set.

    Each process holds in memory the shards of its own devices and, at a time, only a few blocks of
    rows. With quantization, it also holds a few whole kernels in float32. A process reads only the
    rows that its devices need, but reads all rows of a kernel that it quantizes.

    Args:
        file: Source of the weights.
        config: Configuration of the model.

    Raises:
        UserError: A tensor is missing, has the wrong shape, has a value that is not finite, or
            does not belong to the model.
    """
    leaves = tensor_names.leaves(config, file.file_format)
    _check_names(file, config, leaves)
    # Check all shapes before memory is allocated, since a wrong config may ask for huge arrays.
    for leaf in leaves:
        for name in leaf.tensor_names:
            file.read_rows(name, leaf.tensor_shape, 0, 1)
    params: dict[str, jax.Array] = {}
    # Most of the time goes into page faults of new memory, which several cores handle faster.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for leaf in leaves:
            quantized = bool(config.quantize) and leaf.path.endswith('/kernel')
            read = _read_quantized if quantized else _read_plain
            params |= read(file, config, leaf, pool)
    return unflatten_dict(params, sep='/')


def to_huggingface(config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """Convert the decoder's `params` to the tensor names and shapes of `transformers`.

    Args:
        config: Configuration of the model.
        params: Collection `params`, not quantized.

    Returns:
        Tensors by name, one per layer, with outputs before inputs.
    """
    values = dict(named_leaves(params))
    tensors = {}
    for leaf in tensor_names.leaves(config, 'huggingface'):
        layers = _layers(leaf, np.asarray(values[leaf.path]))
        for name, layer in zip(leaf.tensor_names, layers, strict=True):
            tensors[name] = np.ascontiguousarray(layer.T if leaf.transposed else layer)
    return tensors


def _check_names(file: WeightFile, config: ModelConfig, leaves: list[tensor_names.Leaf]) -> None:
    """Check that the file has all tensors of the model, and no others.

    If the model ties its output head to the embedding, the file may contain the embedding a second
    time, as the head.
    """
    needed = {name for leaf in leaves for name in leaf.tensor_names}
    missing = [name for leaf in leaves for name in leaf.tensor_names if name not in file.names]
    if missing:
        raise errors.UserError(f'{file.path} has no tensor {missing[0]!r}.')
    extra = sorted(set(file.names) - needed)
    head, embedding = (
        tensor_names.weight_name(part, file.file_format) for part in ('head', 'embedding')
    )
    if config.tied and head in extra:
        extra.remove(head)
        shape = (config.vocab_size, config.width)
        spans = _spans(shape)
        if not all(
            np.array_equal(
                file.read_rows(head, shape, *span), file.read_rows(embedding, shape, *span)
            )
            for span in spans
        ):
            raise errors.UserError(
                f'{file.path} has a head {head!r} that differs from the embedding; model '
                f'{config.name!r} has one matrix for both.'
            )
    if extra:
        raise errors.UserError(
            f'{file.path} has a tensor {extra[0]!r} that is not part of model {config.name!r}.'
        )


def _layers(leaf: tensor_names.Leaf, array: np.ndarray) -> np.ndarray:
    """Return a leaf's array with one entry along the first axis for each tensor in a weight file.

    A leaf of the layers has this axis already: its layer axis. Any other leaf, such as the
    embedding, gets an additional first axis of length 1.
    """
    return array if leaf.path.startswith('layers/') else array[None]


def _read_plain(
    file: WeightFile,
    config: ModelConfig,
    leaf: tensor_names.Leaf,
    pool: concurrent.futures.Executor,
) -> dict[str, jax.Array]:
    buffers = _shard_buffers(config, leaf.path, leaf.shape, leaf.dtype)

    spans = [span for span in _spans(leaf.tensor_shape) if buffers.overlaps(leaf.row_axis, *span)]

    def read(layer: int) -> None:
        for start, block in _finite_blocks(
            file, leaf.tensor_names[layer], leaf.tensor_shape, spans
        ):
            corner = (start,) + (0,) * (block.ndim - 1)
            if leaf.transposed:
                block, corner = block.T, corner[::-1]
            if leaf.path.startswith('layers/'):
                block, corner = block[None], (layer, *corner)
            buffers.put(block, corner)

    list(pool.map(read, range(len(leaf.tensor_names))))
    return {leaf.path: buffers.array()}


def _read_quantized(
    file: WeightFile,
    config: ModelConfig,
    leaf: tensor_names.Leaf,
    pool: concurrent.futures.Executor,
) -> dict[str, jax.Array]:
    """Read a kernel, and quantize it into two leaves: codes and scales."""
    L, D, F = leaf.shape
    codes_shape, scale_shape = quantized_shapes(config.quantize, D, F)
    scale_path = f'{leaf.path}_scale'
    codes = _shard_buffers(config, leaf.path, (L, *codes_shape), codes_dtype(config.quantize))
    scales = _shard_buffers(config, scale_path, (L, *scale_shape), np.dtype(np.float32))

    def read(layer: int) -> None:
        kernel_DF = np.empty((D, F), np.float32)
        spans = _spans(leaf.tensor_shape)
        for start, block in _finite_blocks(
            file, leaf.tensor_names[layer], leaf.tensor_shape, spans
        ):
            kernel_DF[:, start : start + len(block)] = block.T
        quantized = quantize(config.quantize, kernel_DF)
        codes.put(np.asarray(quantized.codes)[None], (layer, 0, 0))
        scales.put(np.asarray(quantized.scale)[None], (layer, 0, 0))

    list(pool.map(read, range(L)))
    return {leaf.path: codes.array(), scale_path: scales.array()}


def _shard_buffers(
    config: ModelConfig, path: str, shape: tuple[int, ...], dtype: Any
) -> ShardBuffers:
    """Allocate memory for the shards of a leaf that this process's devices hold."""
    boxed = flatten_dict(abstract_variables(Decoder(config))['params'], sep='/')[path]
    shardings = sharding.shardings({path: boxed})
    return ShardBuffers(shape, dtype, shardings and shardings[path])


def _finite_blocks(
    file: WeightFile, name: str, shape: tuple[int, ...], spans: list[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Read spans of a tensor's rows in float32, and check that all values are finite.

    Yields:
        Index of the first row of a span, and the rows.
    """
    for span in spans:
        block = file.read_rows(name, shape, *span).astype(np.float32, copy=False)
        # NaN propagates to min and max; unlike isfinite, they need no temporary array.
        if not np.isfinite([block.min(), block.max()]).all():
            raise errors.UserError(
                f'{file.path}: tensor {name!r} has a value that is not finite (NaN or infinity).'
            )
        yield span[0], block


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Split the rows of a tensor into blocks; return `start` and `stop` of each block.

    A block consists of the rows `start` to `stop` - 1. A vector is a single block.
    """
    rows = max(1, _BLOCK_SIZE // shape[-1]) if len(shape) > 1 else shape[0]
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
