"""GGUF files: metadata, and tensors that are dequantized a block of rows at a time."""

import pathlib
from typing import Any

import gguf
import numpy as np

from malora_jax import errors, schema
from malora_jax.models.loading.tensor_names import Format
from malora_jax.schema import PositiveInt

# Tensor with the divisors of the RoPE frequencies: part of the config, not of the weights.
ROPE_DIVISORS = 'rope_freqs.weight'


# Maximum length of a metadata list; the largest known ones, vocabularies and merges, have 500,000.
_MAX_ITEMS = 2**23


class _Reader(gguf.GGUFReader):
    """GGUF reader over a plain array, because slicing `numpy.memmap` a million times takes seconds.

    The reader also rejects impossible sizes in corrupt files.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        # Otherwise a corrupt count such as 2^60 would be looped over beyond the end of the file.
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError('it ends too early')
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            # The base class creates a NumPy array for each item, so the number must be bounded.
            kind, count = self._get(orig_offs, np.uint32)[0], self._get(orig_offs + 4, np.uint64)[0]
            if kind == gguf.GGUFValueType.ARRAY or count > _MAX_ITEMS:
                raise ValueError(f'it has a list of {count:,} items of kind {kind}')
        return super()._get_field_parts(orig_offs, raw_type)

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """Bytes of the file, memory-mapped."""
        return self._bytes

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self._bytes = np.asarray(value)


class GGUFFile:
    """Memory-mapped GGUF file; implements `WeightFile`.

    Attributes:
        path: Path of the file.
        names: Names of the weight tensors.
        architecture: Architecture in the metadata, such as 'llama'; None if it is missing.

    Raises:
        UserError: The file is missing, truncated or not GGUF.
    """

    file_format: Format = 'gguf'

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise errors.UserError(f'There is no weight file {self.path}.')
        try:
            with np.errstate(over='ignore'):
                reader = _Reader(self.path)
        except Exception as error:  # The reader raises many types of errors on a truncated file.
            reason = ' '.join(str(error).split())
            raise errors.UserError(
                f'{self.path} is not a complete GGUF file ({reason}); download it again.'
            ) from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.names = self._tensors.keys() - {ROPE_DIVISORS}
        self.architecture: str | None = self.field('general.architecture', str | None)

    @property
    def keys(self) -> list[str]:
        """Keys of all metadata."""
        return list(self._fields)

    def field(self, key: str, expected_type: Any = Any, default: Any = None) -> Any:
        """Return a metadata value as Python objects.

        Args:
            key: Name of the value.
            expected_type: Type hint that a stored value must match: see `schema`.
            default: Result if the file does not have the key.

        Raises:
            UserError: The value has another type, or is not valid UTF-8.
        """
        if key not in self._fields:
            return default
        try:
            value = self._fields[key].contents()
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f'{self.path} has {key} that is not UTF-8; download it again.'
            ) from error
        mismatch = None if expected_type is Any else schema.find_mismatch(expected_type, value, key)
        if mismatch:
            raise errors.UserError(f'{self.path}: {mismatch}; download it again.')
        return value

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, outputs first; None if there is no such tensor."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(int(size) for size in reversed(tensor.shape))

    def read_tensor(self, name: str) -> np.ndarray:
        """Return a whole tensor, dequantized, with rows in the order of the file."""
        return self._dequantize(name, self._tensors[name].data)

    def read_rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Read rows of a tensor, dequantized and in the order of `transformers`: see `WeightFile`.

        Raises:
            UserError: There is no such tensor, it has another shape, or its format is unsupported.
        """
        actual = self.shape(name)
        if actual is None:
            raise errors.UserError(f'{self.path} has no tensor {name!r}.')
        if actual != shape:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} has shape {actual}; the model needs {shape}.'
            )
        order = self._order(name, shape[0])[start:stop]
        if len(shape) == 1:
            return self.read_tensor(name)[order]
        return self._dequantize(name, self._tensors[name].data[order])

    def _dequantize(self, name: str, data: np.ndarray) -> np.ndarray:
        kind = self._tensors[name].tensor_type
        try:
            # The loader checks for NaN and infinity later.
            with np.errstate(all='ignore'):
                return gguf.dequantize(data, kind)
        except NotImplementedError as error:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} is stored as {kind.name}, which the gguf package '
                'cannot read.'
            ) from error

    def _order(self, name: str, rows: int) -> np.ndarray:
        """Return the indices that bring a tensor's rows from the file into `transformers` order.

        Item i of the result is the index in the file of row i of `transformers`. The two orders
        differ only for queries and keys of architecture llama. RoPE rotates pairs of entries of a
        head. llama.cpp stores the two rows of a pair next to each other; in `transformers`, entry i
        is paired with entry i + C / 2, where C is the width of a head.
        """
        order = np.arange(rows)
        part = name.split('.')[-2]
        if self.architecture != 'llama' or part not in ('attn_q', 'attn_k'):
            return order
        heads = self.field('llama.attention.head_count', PositiveInt)
        if part == 'attn_k':
            heads = self.field('llama.attention.head_count_kv', PositiveInt, heads)
        return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
