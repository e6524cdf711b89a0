"""Weights of a Hugging Face model in safetensors format, as one file or in shards."""

import pathlib
from typing import Any, TypedDict

import numpy as np
import safetensors

from malora_jax import errors, files
from malora_jax.models.loading.tensor_names import Format

_WHOLE, _INDEX = 'model.safetensors', 'model.safetensors.index.json'
_DTYPES = ('F32', 'BF16', 'F16')
# Old files contain the RoPE frequencies, which the config determines.
_DERIVED = 'rotary_emb.inv_freq'


class _Index(TypedDict):
    weight_map: dict[str, str]


class SafetensorsFiles:
    """Memory-mapped safetensors files of a model's directory; implements `WeightFile`.

    Attributes:
        path: Directory of the model.
        names: Names of the weight tensors.

    Raises:
        UserError: There are no safetensors files, or one is missing, is truncated, or contains
            other tensors than the index lists.
    """

    file_format: Format = 'huggingface'

    def __init__(self, directory: str | pathlib.Path):
        self.path = pathlib.Path(directory)
        if (self.path / _WHOLE).is_file():
            whole = _open(self.path / _WHOLE)
            self._files = dict.fromkeys(whole.keys(), whole)
        elif (self.path / _INDEX).is_file():
            self._files = self._shards()
        else:
            raise errors.UserError(self._missing_message())
        self.names = {name for name in self._files if not name.endswith(_DERIVED)}

    def read_rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Read rows of a tensor, in the dtype of the file: see `WeightFile`.

        Raises:
            UserError: There is no such tensor, it has another shape, or its dtype is unsupported.
        """
        if name not in self._files:
            raise errors.UserError(f'{self.path} has no tensor {name!r}.')
        tensor = self._files[name].get_slice(name)
        actual, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
        if actual != shape:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} has shape {actual}; the model needs {shape}.'
            )
        if dtype not in _DTYPES:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} is stored as {dtype}; only {", ".join(_DTYPES)} '
                'can be read.'
            )
        return tensor[start:stop]

    def _shards(self) -> dict[str, Any]:
        path = self.path / _INDEX
        shard_of: dict[str, str] = files.read_json(path, _Index, 'download it again')['weight_map']
        shards = {}
        for shard in sorted(set(shard_of.values())):
            if pathlib.PurePath(shard).name != shard or not (self.path / shard).is_file():
                raise errors.UserError(
                    f'{self.path} lacks the shard {shard!r} that {_INDEX} names.'
                )
            shards[shard] = _open(self.path / shard)
        held = {shard: set(file.keys()) for shard, file in shards.items()}
        for name, shard in shard_of.items():
            if name not in held[shard]:
                raise errors.UserError(
                    f'{self.path / shard} has no tensor {name!r}, which {_INDEX} places there.'
                )
        for shard, names in held.items():
            extra = sorted(names - shard_of.keys())
            if extra:
                raise errors.UserError(
                    f'{self.path / shard} has a tensor {extra[0]!r} that {_INDEX} does not name.'
                )
        return {name: shards[shard] for name, shard in shard_of.items()}

    def _missing_message(self) -> str:
        if any(self.path.glob('*.bin')) or any(self.path.glob('*.pth')):
            return (
                f'{self.path} has its weights as pickles (*.bin), which are not read: save the '
                'model as safetensors.'
            )
        return f'{self.path} has neither {_WHOLE} nor {_INDEX}.'


def _open(path: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(path, 'numpy')
    except safetensors.SafetensorError as error:
        raise errors.UserError(
            f'{path} is not a complete safetensors file ({error}); download it again.'
        ) from error
