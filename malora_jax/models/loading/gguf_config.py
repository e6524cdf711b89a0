"""Model configuration from the metadata of a GGUF file.

A file may describe a feature that is not implemented. So that no such feature is silently ignored,
an unknown key of the architecture is an error, unless its value is empty. Known keys are those that
are read here, and those that do not affect what the model computes.
"""

import jax.numpy as jnp
import numpy as np

from malora_jax import errors, schema
from malora_jax.models import attention
from malora_jax.models.config import Llama3Scaling, ModelConfig
from malora_jax.models.loading.gguf_file import ROPE_DIVISORS, GGUFFile

_ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
_EMBEDDING, _HEAD = 'token_embd.weight', 'output.weight'

# GGUF key of each field of `ModelConfig`, without the prefix that names the architecture.
_FIELDS = {
    'width': 'embedding_length',
    'hidden': 'feed_forward_length',
    'num_layers': 'block_count',
    'num_heads': 'attention.head_count',
    'num_kv_heads': 'attention.head_count_kv',
    'head_width': 'attention.key_length',
    'context': 'context_length',
    'rope_theta': 'rope.freq_base',
    'norm_epsilon': 'attention.layer_norm_rms_epsilon',
}
_ALSO_READ = ('attention.sliding_window', 'attention.value_length', 'rope.dimension_count')
_WITHOUT_EFFECT = ('vocab_size', 'tensor_data_layout', 'rope.scaling.original_context_length')
# Keys that affect the computation, with the only value that is implemented.
_FIXED = {
    'rope.scaling.type': 'none',
    'rope.scale_linear': 1.0,
    'rope.scaling.factor': 1.0,
    'attention.causal': True,
    'expert_count': 0,
    'expert_used_count': 0,
}


def field_keys(file: GGUFFile) -> dict[str, str]:
    """Return a dictionary from fields of `ModelConfig` to their names in error messages.

    The name is usually the field's GGUF key. A field that no key determines has a description
    instead, such as 'norms of q and k'.
    """
    named = {field: f'{file.architecture}.{key}' for field, key in _FIELDS.items()}
    return named | {
        'vocab_size': f'rows of {_EMBEDDING}',
        'rope_scaling': ROPE_DIVISORS,
        'qkv_bias': 'biases of q, k and v',
        'qk_norm': 'norms of q and k',
    }


def read_config(file: GGUFFile, name: str, dtype: str) -> ModelConfig:
    """Return the configuration of the model in a GGUF file.

    Sliding-window attention is not implemented, but within one window it equals full attention. If
    the model has a sliding window, the context length is therefore at most the window.

    Args:
        file: GGUF file.
        name: Name for the model.
        dtype: Dtype of activations and frozen weights.

    Raises:
        UserError: The architecture or a feature is not implemented, or a key is missing.
    """
    if file.architecture not in _ARCHITECTURES:
        raise errors.UserError(
            f'{file.path} holds a model of architecture {errors.short_repr(file.architecture)}; '
            f'only {", ".join(_ARCHITECTURES)} can be read from GGUF.'
        )
    _check_known(file)
    width, heads = (
        _positive_int(file, 'embedding_length'),
        _positive_int(file, 'attention.head_count'),
    )
    head_width = _positive_int(file, 'attention.key_length', width // heads)
    for key in ('attention.value_length', 'rope.dimension_count'):
        if _positive_int(file, key, head_width) != head_width:
            raise _config_error(file, key, f'{head_width}, the width of a head')
    embedding_shape = file.shape(_EMBEDDING)
    if embedding_shape is None:
        raise errors.UserError(f'{file.path} has no tensor {_EMBEDDING!r}.')
    context = _positive_int(file, 'context_length')
    theta = _positive_float(file, 'rope.freq_base', 10000.0)
    with errors.prefix_errors(file.path):
        return ModelConfig(
            name=name,
            vocab_size=embedding_shape[0],
            width=width,
            hidden=_positive_int(file, 'feed_forward_length'),
            num_layers=_positive_int(file, 'block_count'),
            num_heads=heads,
            num_kv_heads=_positive_int(file, 'attention.head_count_kv', heads),
            head_width=head_width,
            context=min(context, _positive_int(file, 'attention.sliding_window', context)),
            rope_theta=theta,
            rope_scaling=_scaling(file, head_width, theta),
            norm_epsilon=_positive_float(file, 'attention.layer_norm_rms_epsilon'),
            qkv_bias=file.architecture == 'qwen2',
            qk_norm=file.architecture == 'qwen3',
            tied=_HEAD not in file.names,
            dtype=dtype,
        )


def _check_known(file: GGUFFile) -> None:
    for key, expected in _FIXED.items():
        if _field(file, key) not in (None, expected):
            raise _config_error(file, key, f'{expected!r}, as nothing else is implemented')
    known = {*_FIELDS.values(), *_ALSO_READ, *_WITHOUT_EFFECT, *_FIXED}
    for key in file.keys:
        section, _, rest = key.partition('.')
        if section == file.architecture and rest not in known and file.field(key) not in ('', []):
            raise errors.UserError(
                f'{file.path} sets {errors.short_repr(key)[1:-1]} = '
                f'{errors.short_repr(file.field(key))}, which is not implemented.'
            )


def _scaling(file: GGUFFile, head_width: int, theta: float) -> Llama3Scaling | None:
    """Return Llama 3's RoPE scaling, or None.

    The file contains only the divisors of the frequencies, from which the scaling is inferred.
    """
    if file.shape(ROPE_DIVISORS) is None:
        return None
    divisors_C = file.read_tensor(ROPE_DIVISORS)
    scaling = Llama3Scaling(float(divisors_C.max()), 1.0, 4.0, 8192)
    frequency_C = theta ** (-jnp.arange(head_width // 2, dtype=jnp.float32) / (head_width // 2))
    expected_C = np.asarray(frequency_C / attention.scale_frequencies(frequency_C, scaling))
    if expected_C.shape != divisors_C.shape or not np.allclose(divisors_C, expected_C, rtol=1e-4):
        raise errors.UserError(
            f'{file.path}: {ROPE_DIVISORS!r} is not the RoPE scaling of Llama 3 (low and high '
            'frequency factors 1 and 4, original context 8192); no other scaling is implemented.'
        )
    return scaling


def _field(file: GGUFFile, key: str) -> object:
    return file.field(f'{file.architecture}.{key}')


def _positive_int(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = _field(file, key)
    value = default if value is None else value
    if not isinstance(value, int) or schema.find_mismatch(schema.PositiveInt, value):
        raise _config_error(file, key, 'a positive whole number')
    return value


def _positive_float(file: GGUFFile, key: str, default: float | None = None) -> float:
    value = _field(file, key)
    value = default if value is None else value
    if not isinstance(value, float) or not 0 < value < float('inf'):
        raise _config_error(file, key, 'a positive number')
    # Files store float32: take the shortest decimal that rounds to it, so that 1e-05 stays 1e-05.
    return float(str(np.float32(value)))


def _config_error(file: GGUFFile, key: str, expected: str) -> errors.UserError:
    value = _field(file, key)
    actual = (
        f'no {file.architecture}.{key}'
        if value is None
        else f'{file.architecture}.{key} = {errors.short_repr(value)}'
    )
    return errors.UserError(f'{file.path} has {actual}; it must be {expected}.')
