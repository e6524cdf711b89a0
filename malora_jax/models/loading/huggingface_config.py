"""Model configuration from the `config.json` of `transformers`.

A file may describe a feature that is not implemented. So that no such feature is silently ignored,
an unknown key is an error, unless its value is empty. Known keys are those that are read here, and
those that do not affect what the model computes.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from malora_jax import errors, files, schema
from malora_jax.models.config import Llama3Scaling, ModelConfig

# Defaults of `transformers` for keys that the file lacks, by architecture.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    'LlamaForCausalLM': {},
    'MistralForCausalLM': {'num_key_value_heads': 8, 'sliding_window': 4096},
    'Qwen2ForCausalLM': {'num_key_value_heads': 32, 'sliding_window': 4096},
    'Qwen3ForCausalLM': {'num_key_value_heads': 32, 'head_dim': 128, 'sliding_window': 4096},
}

# Key in config.json of each field of `ModelConfig`; or a description of the feature, if no single
# key determines the field.
FIELD_KEYS = {
    'vocab_size': 'vocab_size',
    'width': 'hidden_size',
    'hidden': 'intermediate_size',
    'num_layers': 'num_hidden_layers',
    'num_heads': 'num_attention_heads',
    'num_kv_heads': 'num_key_value_heads',
    'head_width': 'head_dim',
    'context': 'max_position_embeddings',
    'rope_theta': 'rope_theta',
    'rope_scaling': 'rope_scaling',
    'norm_epsilon': 'rms_norm_eps',
    'qkv_bias': 'biases of q, k and v',
    'qk_norm': 'norms of q and k',
}
_ALSO_READ = (
    'architectures',
    'tie_word_embeddings',
    'rope_parameters',
    'sliding_window',
    'use_sliding_window',
    'layer_types',
)

# Keys that affect the computation, with the only value that is implemented.
_FIXED: dict[str, Any] = {
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'attention_dropout': 0.0,
    'partial_rotary_factor': 1.0,
    'quantization_config': None,
    'auto_map': None,
}

# Keys without effect on the logits: bookkeeping, generation, and training from scratch.
_WITHOUT_EFFECT = """
    model_type transformers_version torch_dtype dtype tokenizer_class use_cache return_dict
    initializer_range pretraining_tp max_window_layers chunk_size_feed_forward id2label label2id
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
    is_llama_config transformers.js_config unsloth_version unsloth_fixed
    max_length min_length do_sample num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty encoder_no_repeat_ngram_size
    no_repeat_ngram_size num_return_sequences early_stopping
"""

# Keys without effect if they are false.
_IGNORED_IF_FALSE = """
    use_mrope rope_interleaved use_qk_norm is_decoder is_encoder_decoder add_cross_attention
    tie_encoder_decoder output_attentions output_hidden_states output_scores output_router_logits
    return_dict_in_generate torchscript use_bfloat16 tf_legacy_loss remove_invalid_values
    gradient_checkpointing use_parallel_residual
"""

# Required keys of each `rope_type` that is implemented.
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    'default': (),
    'llama3': (
        'factor',
        'low_freq_factor',
        'high_freq_factor',
        'original_max_position_embeddings',
    ),
}


def read_config(path: pathlib.Path, name: str, dtype: str) -> ModelConfig:
    """Return the configuration of the model that a `config.json` describes.

    Sliding-window attention is not implemented, but within one window it equals full attention. If
    the model has a sliding window, the context length is therefore at most the window.

    Args:
        path: Path of the file.
        name: Name for the model.
        dtype: Dtype of activations and frozen weights.

    Raises:
        UserError: The file is missing or broken, or sets something that is not implemented.
    """
    values = _ConfigReader(path)
    values.check()
    width, heads = values.positive_int('hidden_size'), values.positive_int('num_attention_heads')
    with errors.prefix_errors(path):
        return ModelConfig(
            name=name,
            vocab_size=values.positive_int('vocab_size'),
            width=width,
            hidden=values.positive_int('intermediate_size'),
            num_layers=values.positive_int('num_hidden_layers'),
            num_heads=heads,
            num_kv_heads=values.positive_int('num_key_value_heads', heads),
            head_width=values.positive_int('head_dim', width // heads),
            context=values.context(),
            rope_theta=values.rope_theta(),
            rope_scaling=values.rope_scaling(),
            norm_epsilon=values.positive_float('rms_norm_eps', 1e-6),
            qkv_bias=values.architecture == 'Qwen2ForCausalLM',
            qk_norm=values.architecture == 'Qwen3ForCausalLM',
            tied=values.flag('tie_word_embeddings'),
            dtype=dtype,
        )


class _ConfigReader:
    """Checked values of a `config.json`, with the defaults of its architecture.

    Raises:
        UserError: The file is missing or broken, or its architecture is not implemented. Methods
            raise it for values that are missing, malformed or not implemented.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        if not path.is_file():
            raise errors.UserError(
                f'There is no {path}: a directory of weights needs the config.json of the model.'
            )
        self._values = files.read_json(path, dict, 'download it again')
        architectures = self._values.get('architectures')
        if architectures not in [[architecture] for architecture in _ARCHITECTURES]:
            raise self._config_error(
                'architectures', f'a list of one of {", ".join(_ARCHITECTURES)}'
            )
        self.architecture: str = architectures[0]

    def get(self, key: str) -> Any:
        """Return a value, or else the architecture's default, or else None."""
        default = _ARCHITECTURES[self.architecture].get(key)
        return self._values.get(key, default)

    def positive_int(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; `default` if the key is missing or null."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or schema.find_mismatch(schema.PositiveInt, value):
            raise self._config_error(key, 'a positive whole number')
        return value

    def flag(self, key: str) -> bool:
        """Return a bool; False if the key is missing or null."""
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self._config_error(key, 'true or false')
        return bool(value)

    def positive_float(self, key: str, default: float) -> float:
        """Return a positive number as a float; `default` if the key is missing or null."""
        value = self.get(key)
        return self._positive(key, default if value is None else value)

    def check(self) -> None:
        """Raise an error for keys and values that are not implemented."""
        for key, expected in _FIXED.items():
            if self._values.get(key) not in (None, expected):
                raise self._config_error(key, f'{expected!r}, as nothing else is implemented')
        known = {*FIELD_KEYS.values(), *_ALSO_READ, *_FIXED, *_WITHOUT_EFFECT.split()}
        for key, value in self._values.items():
            if value is False and key in _IGNORED_IF_FALSE.split():
                continue
            if key not in known and not _is_empty(value) and not key.startswith('_'):
                raise errors.UserError(
                    f'{self._path} sets {errors.short_repr(key)[1:-1]} = '
                    f'{errors.short_repr(value)}, which is not implemented: remove the key if it '
                    'does not change what the model computes.'
                )

    def context(self) -> int:
        """Return the context length, which is at most the sliding window if there is one."""
        context = self.positive_int('max_position_embeddings')
        window, kinds = self.get('sliding_window'), self.get('layer_types') or ['full_attention']
        switch = self.architecture.startswith('Qwen')
        if switch and not self.get('use_sliding_window'):
            window = None
        allowed = ['full_attention'] if window is None else ['full_attention', 'sliding_attention']
        if not isinstance(kinds, list) or not all(kind in allowed for kind in kinds):
            raise self._config_error(
                'layer_types', f'a list that contains only {" and ".join(allowed)}'
            )
        if window is None:
            return context
        if self.architecture == 'LlamaForCausalLM':
            raise self._config_error('sliding_window', 'null, as this architecture has none')
        return min(context, self.positive_int('sliding_window'))

    def rope_theta(self) -> float:
        """Return the base of the RoPE wavelengths, from `rope_theta` or `rope_parameters`."""
        _, rope = self._rope()
        theta = rope.get('rope_theta', self.get('rope_theta'))
        return self._positive('rope_theta', 10000.0 if theta is None else theta)

    def rope_scaling(self) -> Llama3Scaling | None:
        """Return the RoPE scaling, from `rope_scaling` or the newer `rope_parameters`."""
        section, rope = self._rope()
        kind = rope.get('rope_type') or rope.get('type') or 'default'
        if kind not in list(_ROPE_KEYS):
            raise self._config_error(
                section, f'an object whose rope_type is {" or ".join(_ROPE_KEYS)}'
            )
        keys = _ROPE_KEYS[kind]
        for key, value in rope.items():
            expected = {'partial_rotary_factor': 1.0}.get(key)
            if key not in (*keys, 'rope_type', 'type', 'rope_theta') and value not in (
                None,
                expected,
            ):
                raise self._config_error(section, f'without {key!r}, which is not implemented')
        if not keys:
            return None
        factor, low, high, original = (self._positive(key, rope.get(key)) for key in keys)
        return Llama3Scaling(factor, low, high, int(original))

    def _rope(self) -> tuple[str, Mapping[str, Any]]:
        """Return the key that holds the RoPE settings in the file, and the settings themselves.

        If the file has none, the result is 'rope_scaling' and an empty dictionary.
        """
        sections = {key: self.get(key) for key in ('rope_parameters', 'rope_scaling')}
        sections = {key: value for key, value in sections.items() if value}
        if len(sections) > 1:
            raise self._config_error('rope_scaling', 'absent, because rope_parameters is also set')
        section, rope = next(iter(sections.items()), ('rope_scaling', {}))
        if not isinstance(rope, Mapping):
            raise self._config_error(section, 'an object')
        return section, rope

    def _positive(self, key: str, value: Any) -> float:
        if schema.find_mismatch(float, value) or value <= 0:
            raise errors.UserError(
                f'{self._path} has {key} = {errors.short_repr(value)}; it must be a positive '
                'number.'
            )
        return float(value)

    def _config_error(self, key: str, expected: str) -> errors.UserError:
        actual = (
            f'{key} = {errors.short_repr(self._values[key])}'
            if key in self._values
            else f'no {key}'
        )
        return errors.UserError(f'{self._path} has {actual}; it must be {expected}.')


def _is_empty(value: Any) -> bool:
    """Return whether a value is null or empty. False and 0 are not: they may turn a feature off."""
    return value is None or value in ('', [], {})
