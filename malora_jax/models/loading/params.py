"""The decoder's `params` from a weight file, a block of rows at a time, and back into tensors."""

import concurrent.futures
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax import errors
from malora_jax.adapters.trees import named_leaves
from malora_jax.distributed import rules
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder, abstract_variables
from malora_jax.models.loading import names as names_lib
from malora_jax.models.loading.parts import Parts
from malora_jax.models.quantize import codes_dtype, quantize, shapes

# About so many scalars are read at once.
_BLOCK = 2**18
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

    def rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Rows of the tensor, from `start` to before `stop`; no others are read.

        Raises:
            UserError: there is no such tensor, it has another shape, or it is stored in a way
                that cannot be read.
        """
        ...


def load_params(file: WeightFile, config: ModelConfig) -> dict[str, Any]:
    """The decoder's `params` collection.

    Where a mesh is set, leaves are split over it as `rules` says. At no time is there more than a
    few blocks of rows besides the parts that this process's devices have, and a few kernels in
    float32 where they are quantised. Rows of which no part is here are not read, but for kernels
    that are quantised.

    Raises:
        UserError: a tensor is missing, has another shape or a value that is not finite, or belongs
            to no part of the model.
    """
    leaves = names_lib.leaves(config, file.file_format)
    _check_names(file, config, leaves)
    for leaf in leaves:  # All shapes before any memory: a wrong size may be a very large one.
        for name in leaf.names:
            file.rows(name, leaf.tensor_shape, 0, 1)
    params: dict[str, jax.Array] = {}
    # Most of the time memory is touched for the first time: a matter for several cores.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for leaf in leaves:
            quantized = bool(config.quantize) and leaf.path.endswith('/kernel')
            read = _read_quantized if quantized else _read_plain
            params |= read(file, config, leaf, pool)
    return unflatten_dict(params, sep='/')


def to_huggingface(config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a decoder under the names and in the shapes of `transformers`.

    Args:
        config: its shape.
        params: not quantised.
    """
    values = dict(named_leaves(params))
    tensors = {}
    for leaf in names_lib.leaves(config, 'huggingface'):
        layers = _layers(leaf, np.asarray(values[leaf.path]))
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
        spans = _spans(shape)
        if not all(
            np.array_equal(file.rows(head, shape, *span), file.rows(embedding, shape, *span))
            for span in spans
        ):
            raise errors.UserError(
                f'{file.path} has a head {head!r} that differs from the embedding; model '
                f'{config.name!r} has one matrix for both.'
            )
    if extra:
        raise errors.UserError(
            f'{file.path} has a tensor {extra[0]!r}, for which model {config.name!r} has no place.'
        )


def _layers(leaf: names_lib.Leaf, array: np.ndarray) -> np.ndarray:
    """Where each tensor of a leaf goes: into a layer, or into the leaf itself."""
    return array if leaf.path.startswith('layers/') else array[None]


def _read_plain(
    file: WeightFile, config: ModelConfig, leaf: names_lib.Leaf, pool: concurrent.futures.Executor
) -> dict[str, jax.Array]:
    parts = _parts(config, leaf.path, leaf.shape, leaf.dtype)

    spans = [span for span in _spans(leaf.tensor_shape) if parts.wants(leaf.row_axis, *span)]

    def read(layer: int) -> None:
        for start, block in _finite_blocks(file, leaf.names[layer], leaf.tensor_shape, spans):
            corner = (start,) + (0,) * (block.ndim - 1)
            if leaf.transposed:
                block, corner = block.T, corner[::-1]
            if leaf.path.startswith('layers/'):
                block, corner = block[None], (layer, *corner)
            parts.put(block, corner)

    list(pool.map(read, range(len(leaf.names))))
    return {leaf.path: parts.array()}


def _read_quantized(
    file: WeightFile, config: ModelConfig, leaf: names_lib.Leaf, pool: concurrent.futures.Executor
) -> dict[str, jax.Array]:
    """A kernel as codes and scales, which lie beside it."""
    L, D, F = leaf.shape
    of_codes, of_scale = shapes(config.quantize, D, F)
    scale_path = f'{leaf.path}_scale'
    codes = _parts(config, leaf.path, (L, *of_codes), codes_dtype(config.quantize))
    scales = _parts(config, scale_path, (L, *of_scale), np.dtype(np.float32))

    def read(layer: int) -> None:
        kernel_DF = np.empty((D, F), np.float32)
        spans = _spans(leaf.tensor_shape)
        for start, block in _finite_blocks(file, leaf.names[layer], leaf.tensor_shape, spans):
            kernel_DF[:, start : start + len(block)] = block.T
        found = quantize(config.quantize, kernel_DF)
        codes.put(np.asarray(found.codes)[None], (layer, 0, 0))
        scales.put(np.asarray(found.scale)[None], (layer, 0, 0))

    list(pool.map(read, range(L)))
    return {leaf.path: codes.array(), scale_path: scales.array()}


def _parts(config: ModelConfig, path: str, shape: tuple[int, ...], dtype: Any) -> Parts:
    """Memory for what of a leaf is wanted here, on the mesh that is set."""
    boxed = flatten_dict(abstract_variables(Decoder(config))['params'], sep='/')[path]
    found = rules.shardings({path: boxed})
    return Parts(shape, dtype, found and found[path])


def _finite_blocks(
    file: WeightFile, name: str, shape: tuple[int, ...], spans: list[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Spans of rows in float32, each with the row where it begins."""
    for span in spans:
        block = file.rows(name, shape, *span).astype(np.float32, copy=False)
        # NaN spreads to both, and no copy is made as with isfinite.
        if not np.isfinite([block.min(), block.max()]).all():
            raise errors.UserError(
                f'{file.path}: tensor {name!r} has a value that is not finite (NaN or infinity).'
            )
        yield span[0], block


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where blocks of a tensor's rows begin and end; a vector is one."""
    rows = max(1, _BLOCK // shape[-1]) if len(shape) > 1 else shape[0]
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
