"""A GGUF file: its metadata, and its tensors dequantised a block of rows at a time."""

import pathlib
from typing import Any

import gguf
import numpy as np

from malora_jax import errors, schema
from malora_jax.models.loading.names import Format
from malora_jax.schema import Positive

# The tensor by whose values rotary frequencies are divided: part of the config, not of the weights.
ROPE_DIVISORS = 'rope_freqs.weight'


# Of a list in the metadata; the largest that are known, vocabularies and merges, have 500,000.
_MOST_ITEMS = 2**23


class _Reader(gguf.GGUFReader):
    """Reads through a plain array: slicing `numpy.memmap` a million times takes seconds."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        # Without this, a count of 2^60 would be looped over beyond the end of the file.
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError('it ends too early')
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            # Of each item, an array of numpy is made.
            kind, count = self._get(orig_offs, np.uint32)[0], self._get(orig_offs + 4, np.uint64)[0]
            if kind == gguf.GGUFValueType.ARRAY or count > _MOST_ITEMS:
                raise ValueError(f'it has a list of {count:,} items of kind {kind}')
        return super()._get_field_parts(orig_offs, raw_type)

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The bytes of the file, still mapped."""
        return self._bytes

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self._bytes = np.asarray(value)


class GGUFFile:
    """A GGUF file, memory-mapped; its metadata and its tensors by name.

    Raises:
        UserError: the file is missing, truncated or not GGUF.
    """

    file_format: Format = 'gguf'

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise errors.UserError(f'There is no weight file {self.path}.')
        try:
            with np.errstate(over='ignore'):
                reader = _Reader(self.path)
        except Exception as error:  # It fails in many ways on a cut file.
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
        """The keys of all metadata."""
        return list(self._fields)

    def field(self, key: str, kind: Any = Any, default: Any = None) -> Any:
        """The metadata value of that key, as Python objects.

        Args:
            key: Its name.
            kind: Type hint that it must match if the file has it; see `schema`.
            default: What is returned if the file does not have it.

        Raises:
            UserError: it has another type, or text that is not UTF-8.
        """
        if key not in self._fields:
            return default
        try:
            value = self._fields[key].contents()
        except UnicodeDecodeError as error:
            raise errors.UserError(
                f'{self.path} has {key} that is not UTF-8; download it again.'
            ) from error
        fault = None if kind is Any else schema.find_fault(kind, value, key)
        if fault:
            raise errors.UserError(f'{self.path}: {fault}; download it again.')
        return value

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, outputs first; None if there is no such tensor."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(int(size) for size in reversed(tensor.shape))

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor, dequantised, as it lies in the file."""
        return self._dequantize(name, self._tensors[name].data)

    def rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """See `WeightFile`; float32, with the rows of a head in the order of `transformers`."""
        found = self.shape(name)
        if found is None:
            raise errors.UserError(f'{self.path} has no tensor {name!r}.')
        if found != shape:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} has shape {found}; the model needs {shape}.'
            )
        order = self._order(name, shape[0])[start:stop]
        if len(shape) == 1:
            return self.tensor(name)[order]
        return self._dequantize(name, self._tensors[name].data[order])

    def _dequantize(self, name: str, data: np.ndarray) -> np.ndarray:
        kind = self._tensors[name].tensor_type
        try:
            # What is not finite is found later.
            with np.errstate(all='ignore'):
                return gguf.dequantize(data, kind)
        except NotImplementedError as error:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} is stored as {kind.name}, which the gguf package '
                'cannot read.'
            ) from error

    def _order(self, name: str, rows: int) -> np.ndarray:
        """Where in the file each row is.

        For models of architecture llama, llama.cpp has the rows of a query's or key's head such
        that rotary pairs are neighbours; here entry i is paired with entry i + C / 2.
        """
        order = np.arange(rows)
        part = name.split('.')[-2]
        if self.architecture != 'llama' or part not in ('attn_q', 'attn_k'):
            return order
        heads = self.field('llama.attention.head_count', Positive)
        if part == 'attn_k':
            heads = self.field('llama.attention.head_count_kv', Positive, heads)
        return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
