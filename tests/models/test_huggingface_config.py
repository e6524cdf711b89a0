"""Parsing of `config.json`: supported and refused content."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from malora_jax.errors import UserError
from malora_jax.models import ModelConfig, preset
from malora_jax.models.config import Llama3Scaling
from malora_jax.models.loading.huggingface_config import read_config
from tests.helpers.models import TINY_SIZES

LLAMA = TINY_SIZES | {'architectures': ['LlamaForCausalLM']}
EXPECTED = ModelConfig('tiny', 300, 64, 96, 2, 4, 2, 16, 2048, 5000.0, norm_epsilon=1e-4)

LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 1024,
}
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 1024)


def read(path: pathlib.Path, values: Any, dtype: str = 'float32') -> ModelConfig:
    file = path / 'config.json'
    file.write_text(json.dumps(values))
    return read_config(file, 'tiny', dtype)


def message(path: pathlib.Path, values: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, values)
    text = str(caught.value)
    assert '\n' not in text and text.startswith(str(path / 'config.json'))
    return text.removeprefix(str(path / 'config.json') + ' ')


def test_llama(tmp_path):
    assert read(tmp_path, LLAMA) == EXPECTED
    in_bfloat16 = dataclasses.replace(EXPECTED, dtype='bfloat16')
    assert read(tmp_path, LLAMA, 'bfloat16') == in_bfloat16


@pytest.mark.parametrize(
    'changes, fields',
    [
        ({'architectures': ['MistralForCausalLM'], 'sliding_window': None}, {}),
        ({'architectures': ['Qwen2ForCausalLM']}, {'qkv_bias': True}),
        ({'architectures': ['Qwen3ForCausalLM'], 'head_dim': 16}, {'qk_norm': True}),
        # Defaults of transformers for missing fields.
        ({'architectures': ['Qwen3ForCausalLM']}, {'qk_norm': True, 'head_width': 128}),
        ({'num_key_value_heads': None}, {'num_kv_heads': 4}),
        ({'rms_norm_eps': None}, {'norm_epsilon': 1e-6}),
        ({'rope_theta': None}, {'rope_theta': 10000.0}),
        ({'head_dim': 8}, {'head_width': 8}),
        ({'head_dim': None}, {}),
        ({'tie_word_embeddings': True}, {'tied': True}),
        ({'tie_word_embeddings': False}, {}),
        # RoPE scaling, in the format before version 5 of transformers and in the one since.
        ({'rope_scaling': None}, {}),
        ({'rope_scaling': LLAMA3}, {'rope_scaling': SCALING}),
        ({'rope_parameters': LLAMA3 | {'rope_theta': 7e5}, 'rope_theta': None},
         {'rope_scaling': SCALING, 'rope_theta': 7e5}),
        ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 7e5}}, {'rope_theta': 7e5}),
        ({'rope_scaling': {'type': 'default'}}, {}),
        # Within its window, sliding-window attention equals full attention.
        ({'architectures': ['MistralForCausalLM'], 'sliding_window': 512}, {'context': 512}),
        ({'architectures': ['MistralForCausalLM'], 'sliding_window': 4096}, {}),
        ({'architectures': ['MistralForCausalLM'], 'max_position_embeddings': 32768},
         {'context': 4096}),
        ({'architectures': ['Qwen2ForCausalLM'], 'sliding_window': 512},
         {'qkv_bias': True}),
        ({'architectures': ['Qwen2ForCausalLM'], 'sliding_window': 512,
          'use_sliding_window': True, 'max_window_layers': 1,
          'layer_types': ['full_attention', 'sliding_attention']},
         {'qkv_bias': True, 'context': 512}),
        # Keys without effect.
        ({'torch_dtype': 'bfloat16', 'eos_token_id': [1, 2], 'pretraining_tp': 1,
          '_name_or_path': 'x', 'use_mrope': False, 'pruned_heads': {}, 'hidden_act': 'silu',
          'attention_bias': False, 'attention_dropout': 0.0, 'quantization_config': None}, {}),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, changes, fields):
    assert read(tmp_path, LLAMA | changes) == dataclasses.replace(EXPECTED, **fields)


def test_a_file_without_key_value_heads(tmp_path):
    silent = {key: value for key, value in LLAMA.items() if key != 'num_key_value_heads'}
    assert read(tmp_path, silent).num_kv_heads == 4
    mistral = silent | {'architectures': ['MistralForCausalLM'], 'num_attention_heads': 16}
    assert read(tmp_path, mistral).num_kv_heads == 8


def test_the_files_of_the_presets(tmp_path):
    """The relevant keys have the values of the published files on the hub."""
    published = {
        'llama3.2-1b': {
            'architectures': ['LlamaForCausalLM'], 'attention_bias': False,
            'attention_dropout': 0.0, 'bos_token_id': 128000, 'eos_token_id': 128001,
            'head_dim': 64, 'hidden_act': 'silu', 'hidden_size': 2048, 'initializer_range': 0.02,
            'intermediate_size': 8192, 'max_position_embeddings': 131072, 'mlp_bias': False,
            'model_type': 'llama', 'num_attention_heads': 32, 'num_hidden_layers': 16,
            'num_key_value_heads': 8, 'pretraining_tp': 1, 'rms_norm_eps': 1e-05,
            'rope_scaling': {
                'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
                'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
            },
            'rope_theta': 500000.0, 'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
            'transformers_version': '4.45.0.dev0', 'use_cache': True, 'vocab_size': 128256,
        },
        'smollm2-135m': {
            'architectures': ['LlamaForCausalLM'], 'attention_bias': False,
            'attention_dropout': 0.0, 'bos_token_id': 1, 'eos_token_id': 2, 'hidden_act': 'silu',
            'hidden_size': 576, 'initializer_range': 0.041666666666666664,
            'intermediate_size': 1536, 'is_llama_config': True, 'max_position_embeddings': 8192,
            'mlp_bias': False, 'model_type': 'llama', 'num_attention_heads': 9,
            'num_hidden_layers': 30, 'num_key_value_heads': 3, 'pad_token_id': 2,
            'pretraining_tp': 1, 'rms_norm_eps': 1e-05, 'rope_interleaved': False,
            'rope_scaling': None, 'rope_theta': 100000, 'tie_word_embeddings': True,
            'torch_dtype': 'bfloat16', 'transformers_version': '4.42.3', 'use_cache': True,
            'vocab_size': 49152,
        },
    }  # fmt: skip
    for name, values in published.items():
        found = dataclasses.replace(read(tmp_path, values), name=name)
        assert found == preset(name)


# Refused content.


@pytest.mark.parametrize('architectures', [['GemmaForCausalLM'], ['LlamaModel'], [], None, 'Llama'])
def test_other_architectures(tmp_path, architectures):
    assert message(tmp_path, LLAMA | {'architectures': architectures}) == (
        f'has architectures = {architectures!r}; it must be a list of one of LlamaForCausalLM, '
        'MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM.'
    )


@pytest.mark.parametrize(
    'key, value, right',
    [
        ('hidden_act', 'gelu', "'silu', as nothing else is implemented"),
        ('attention_bias', True, 'False, as nothing else is implemented'),
        ('mlp_bias', True, 'False, as nothing else is implemented'),
        ('attention_dropout', 0.1, '0.0, as nothing else is implemented'),
        ('partial_rotary_factor', 0.5, '1.0, as nothing else is implemented'),
        ('quantization_config', {'bits': 4}, 'None, as nothing else is implemented'),
        ('auto_map', {'AutoModel': 'own.py'}, 'None, as nothing else is implemented'),
        ('sliding_window', 512, 'null, as this architecture has none'),
        ('layer_types', ['linear_attention'], 'a list that contains only full_attention'),
        ('layer_types', 'full_attention', 'a list that contains only full_attention'),
        ('layer_types', ['sliding_attention'], 'a list that contains only full_attention'),
        (
            'rope_scaling',
            {'type': 'linear', 'factor': 2.0},
            'an object whose rope_type is default or llama3',
        ),
        (
            'rope_scaling',
            {'rope_type': 'yarn', 'factor': 2.0},
            'an object whose rope_type is default or llama3',
        ),
        (
            'rope_scaling',
            {'rope_type': ['llama3']},
            'an object whose rope_type is default or llama3',
        ),
        ('rope_scaling', 2.0, 'an object'),
        (
            'rope_parameters',
            {'rope_type': 'default', 'factor': 2.0},
            "without 'factor', which is not implemented",
        ),
        (
            'rope_parameters',
            {'rope_type': 'default', 'partial_rotary_factor': 0.5},
            "without 'partial_rotary_factor', which is not implemented",
        ),
        ('vocab_size', None, 'a positive whole number'),
        ('vocab_size', '300', 'a positive whole number'),
        ('num_hidden_layers', 0, 'a positive whole number'),
        ('num_attention_heads', 4.0, 'a positive whole number'),
        ('num_key_value_heads', True, 'a positive whole number'),
        ('rms_norm_eps', 0, 'a positive number'),
        ('rope_theta', 'big', 'a positive number'),
    ],
)
def test_values_that_are_not_implemented(tmp_path, key, value, right):
    text = message(tmp_path, LLAMA | {key: value})
    assert text == f'has {key} = {value!r}; it must be {right}.'


def test_a_missing_size(tmp_path):
    silent = {key: value for key, value in LLAMA.items() if key != 'hidden_size'}
    assert message(tmp_path, silent) == 'has no hidden_size; it must be a positive whole number.'


@pytest.mark.parametrize('key', ['factor', 'original_max_position_embeddings'])
def test_incomplete_scaling(tmp_path, key):
    scaling = {name: value for name, value in LLAMA3.items() if name != key}
    text = message(tmp_path, LLAMA | {'rope_scaling': scaling})
    assert text == f'has {key} = None; it must be a positive number.'


def test_scaling_twice(tmp_path):
    both = {'rope_scaling': LLAMA3, 'rope_parameters': LLAMA3}
    text = message(tmp_path, LLAMA | both)
    assert text == (
        f'has rope_scaling = {LLAMA3!r}; it must be absent, because rope_parameters is also set.'
    )


@pytest.mark.parametrize(
    'key, value',
    [
        *(('clip_qkv', 8.0), ('num_local_experts', 8), ('rope_interleaved', True)),
        *(('is_causal', False), ('use_rope', False), ('residual_multiplier', 0)),
    ],
)
def test_unknown_keys(tmp_path, key, value):
    assert message(tmp_path, LLAMA | {key: value}) == (
        f'sets {key} = {value!r}, which is not implemented: remove the key if it does not change '
        'what the model computes.'
    )


def test_what_is_off_or_empty_changes_nothing(tmp_path):
    nothing = {'rope_interleaved': False, 'use_mrope': False, 'clip_qkv': None, 'task_params': {}}
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(LLAMA | nothing))
    plain = tmp_path / 'plain.json'
    plain.write_text(json.dumps(LLAMA))
    assert read_config(path, 'tiny', 'float32') == read_config(plain, 'tiny', 'float32')


def test_values_of_another_type(tmp_path):
    assert message(tmp_path, LLAMA | {'tie_word_embeddings': 'false'}) == (
        "has tie_word_embeddings = 'false'; it must be true or false."
    )
    text = message(tmp_path, LLAMA | {'rope_parameters': {'rope_theta': 0}})
    assert text == 'has rope_theta = 0; it must be a positive number.'


@pytest.mark.parametrize('content', ['{"hidden_size": 64', '', '\x00'])
def test_broken_json(tmp_path, content):
    path = tmp_path / 'config.json'
    path.write_text(content)
    with pytest.raises(UserError, match=r'config\.json is not valid JSON'):
        read_config(path, 'tiny', 'float32')


def test_no_object(tmp_path):
    told = message(tmp_path, [LLAMA])
    assert told.endswith('; it must be an object with fields: download it again.')


def test_no_file(tmp_path):
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / 'config.json', 'tiny', 'float32')
    assert str(caught.value) == (
        f'There is no {tmp_path / "config.json"}: a directory of weights needs the config.json of '
        'the model.'
    )
