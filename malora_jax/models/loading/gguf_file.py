"""Base weights from a GGUF file: tensors dequantised one by one into our parameter tree."""

import pathlib
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.models.config import ModelConfig

# Our path under `layers`, and llama.cpp's name of it in block i.
_LAYER_TENSORS = {
    ('attention_norm', 'scale'): 'attn_norm',
    ('attention', 'q', 'kernel'): 'attn_q',
    ('attention', 'k', 'kernel'): 'attn_k',
    ('attention', 'v', 'kernel'): 'attn_v',
    ('attention', 'o', 'kernel'): 'attn_output',
    ('mlp_norm', 'scale'): 'ffn_norm',
    ('mlp', 'gate', 'kernel'): 'ffn_gate',
    ('mlp', 'up', 'kernel'): 'ffn_up',
    ('mlp', 'down', 'kernel'): 'ffn_down',
}

# What the format means by a key that is absent.
_DEFAULTS = {'rope.freq_base': 10000.0}


class GGUFFile:
    """A GGUF file, memory-mapped; its metadata and its tensors by name.

    Raises:
        UserError: the file is missing, truncated or not GGUF.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise errors.UserError(f'There is no weight file {self.path}.')
        try:
            reader = gguf.GGUFReader(self.path)
        except Exception as error:  # It fails in many ways on a cut file.
            raise errors.UserError(
                f'{self.path} is not a complete GGUF file ({error}); download it again.'
            ) from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(self, key: str, default: Any = None) -> Any:
        """The metadata value of that key, as Python objects."""
        return self._fields[key].contents() if key in self._fields else default

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The dequantised float32 tensor, rows of outputs first.

        Raises:
            UserError: no such tensor, or another shape.
        """
        if name not in self._tensors:
            raise errors.UserError(f'{self.path} has no tensor {name!r}.')
        tensor = self._tensors[name]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} is stored as {tensor.tensor_type.name}, '
                'which the gguf package cannot read.'
            ) from error
        if values.shape != shape:
            raise errors.UserError(
                f'{self.path}: tensor {name!r} has shape {values.shape}; the model needs {shape}.'
            )
        return values


def load_params(file: GGUFFile, config: ModelConfig) -> dict[str, Any]:
    """The decoder's `params` collection from a GGUF file of llama architecture.

    At no time is there more than one tensor besides the tree itself.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    dtype = jnp.dtype(config.dtype)
    layers: dict[str, Any] = {}
    for path, name in _LAYER_TENSORS.items():
        stacked: np.ndarray | None = None
        for layer in range(config.num_layers):
            values = _layer_tensor(file, config, name, layer)
            if stacked is None:
                kind = np.float32 if path[-1] == 'scale' else dtype
                stacked = np.empty((config.num_layers, *values.shape), kind)
            stacked[layer] = values
        branch = layers
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = jax.device_put(stacked)
    vocabulary = (config.vocab_size, config.width)
    params = {
        'embedding': jax.device_put(file.tensor('token_embd.weight', vocabulary).astype(dtype)),
        'final_norm': {'scale': jax.device_put(file.tensor('output_norm.weight', (config.width,)))},
        'layers': layers,
    }
    if not config.tied:
        params['head'] = jax.device_put(file.tensor('output.weight', vocabulary).astype(dtype))
    return params


def _layer_tensor(file: GGUFFile, config: ModelConfig, name: str, layer: int) -> np.ndarray:
    """One tensor in our orientation: norms (D,), kernels (inputs, outputs)."""
    D, F = config.width, config.hidden
    queries = config.num_heads * config.head_width
    keys = config.num_kv_heads * config.head_width
    shapes = {
        'attn_norm': (D,),
        'ffn_norm': (D,),
        'attn_q': (queries, D),
        'attn_k': (keys, D),
        'attn_v': (keys, D),
        'attn_output': (D, queries),
        'ffn_gate': (F, D),
        'ffn_up': (F, D),
        'ffn_down': (D, F),
    }
    values = file.tensor(f'blk.{layer}.{name}.weight', shapes[name])
    if name in ('attn_q', 'attn_k'):
        values = _unpermute(values, config.head_width)
    return values.T


def _unpermute(rows_AD: np.ndarray, head_width: int) -> np.ndarray:
    """Undoes llama.cpp's order of a head's rows, in which rotary pairs are neighbours.

    Here entry i is paired with entry i + C / 2.
    """
    pairs = rows_AD.reshape(-1, head_width // 2, 2, rows_AD.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows_AD.shape)


def check_architecture(file: GGUFFile, config: ModelConfig) -> None:
    """Checks that the file's metadata are those of the model.

    Raises:
        UserError: another architecture, or a size or constant that differs, named.
    """
    architecture = file.field('general.architecture')
    if architecture != 'llama':
        raise errors.UserError(
            f'{file.path} holds a model of architecture {architecture!r}; '
            "only 'llama' can be read from GGUF."
        )
    expected = {
        'block_count': config.num_layers,
        'embedding_length': config.width,
        'feed_forward_length': config.hidden,
        'attention.head_count': config.num_heads,
        'attention.head_count_kv': config.num_kv_heads,
        'rope.freq_base': config.rope_theta,
        'attention.layer_norm_rms_epsilon': config.norm_epsilon,
    }
    for key, right in expected.items():
        found = file.field(f'llama.{key}', _DEFAULTS.get(key))
        if not isinstance(found, int | float) or not np.isclose(found, right, rtol=1e-6):
            raise errors.UserError(
                f'{file.path} has llama.{key} = {found}; model {config.name!r} needs {right}.'
            )
