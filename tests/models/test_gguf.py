import dataclasses
import functools
import pathlib
import tempfile

import flax.linen as nn
import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.adapters.trees import named_leaves
from malora_jax.errors import UserError
from malora_jax.models import preset
from malora_jax.models.config import Llama3Scaling
from malora_jax.models.decoder import abstract_variables
from malora_jax.models.loading import base_model as weights_lib
from malora_jax.models.loading import params as params_lib
from malora_jax.models.loading.base_model import find_weights, load_base, model_config
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.params import load_params
from tests.helpers.models import tiny_model
from tests.helpers.tiny_gguf import write_tiny_gguf

# Our path under `layers`, and the name in `transformers`, where kernels are (outputs, inputs).
LAYER_NAMES = {
    'attention_norm/scale': 'input_layernorm',
    'attention/q/kernel': 'self_attn.q_proj',
    'attention/k/kernel': 'self_attn.k_proj',
    'attention/v/kernel': 'self_attn.v_proj',
    'attention/o/kernel': 'self_attn.o_proj',
    'mlp_norm/scale': 'post_attention_layernorm',
    'mlp/gate/kernel': 'mlp.gate_proj',
    'mlp/up/kernel': 'mlp.up_proj',
    'mlp/down/kernel': 'mlp.down_proj',
}
MIXED = {'blk.0.attn_q.weight': 'Q8_0', 'blk.1.ffn_up.weight': 'Q4_1'}


EXTRA_NAMES = {
    'llama': {},
    'qwen2': {f'attention/{part}/bias': f'self_attn.{part}_proj.bias' for part in 'qkv'},
    'qwen3': {f'attention/{part}_norm/scale': f'self_attn.{part}_norm.weight' for part in 'qk'},
}


def expected_params(
    weights: dict[str, np.ndarray], tied: bool, architecture: str = 'llama'
) -> dict[str, np.ndarray]:
    expected = {
        'embedding': weights['model.embed_tokens.weight'],
        'final_norm/scale': weights['model.norm.weight'],
    }
    if not tied:
        expected['head'] = weights['lm_head.weight']
    for ours, theirs in LAYER_NAMES.items():
        layers = [weights[f'model.layers.{layer}.{theirs}.weight'].T for layer in range(2)]
        expected[f'layers/{ours}'] = np.stack(layers)
    for ours, theirs in EXTRA_NAMES[architecture].items():
        layers = [weights[f'model.layers.{layer}.{theirs}'] for layer in range(2)]
        expected[f'layers/{ours}'] = np.stack(layers)
    return expected


def load(path: pathlib.Path, **overrides) -> dict[str, np.ndarray]:
    params = load_params(GGUFFile(path), preset('tiny', **overrides))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize('block', [2**18, 500])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
    'types', ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', MIXED], ids=lambda t: str(t)[:5]
)
def test_params_are_exactly_the_dequantised_weights(tmp_path, monkeypatch, types, tied, block):
    monkeypatch.setattr(params_lib, '_BLOCK_SIZE', block)
    weights = write_tiny_gguf(tmp_path / 'tiny.gguf', 3, types, tied=tied)
    assert_same(load(tmp_path / 'tiny.gguf', tied=tied), expected_params(weights, tied))


@pytest.mark.parametrize('architecture, flag', [('qwen2', 'qkv_bias'), ('qwen3', 'qk_norm')])
def test_other_architectures(tmp_path, architecture, flag):
    path = tmp_path / 'tiny.gguf'
    weights = write_tiny_gguf(path, 3, 'F32', architecture=architecture)
    base = load_base(preset('tiny', **{flag: True}), str(path))
    found = {name: np.asarray(leaf) for name, leaf in named_leaves(base.params)}
    assert_same(found, expected_params(weights, True, architecture))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
    'architecture, flag', [('llama', None), ('qwen2', 'qkv_bias'), ('qwen3', 'qk_norm')]
)
def test_the_shape_from_the_metadata(tmp_path, architecture, flag, tied, dtype):
    path = tmp_path / 'some-model.gguf'
    write_tiny_gguf(path, 0, 'F32', architecture=architecture, tied=tied)
    flags = {flag: True} if flag else {}
    expected = preset('tiny', tied=tied, dtype=dtype, **flags)
    found = model_config('auto', str(path), dtype)
    assert found == dataclasses.replace(expected, name='some-model')


def test_what_a_file_is_silent_about(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_header(path, 'llama', 'gpt2', 'smollm', embedding=(2, 64))
    config = model_config('auto', str(path), 'float32')
    assert (config.num_kv_heads, config.head_width, config.rope_theta) == (4, 16, 10000.0)


def test_a_window_bounds_the_context(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, metadata={'attention.sliding_window': 512})
    assert model_config('auto', str(path), 'float32').context == 512
    assert (
        message(path) == f"{path} has llama.context_length = 512; model 'tiny' needs at least 2048."
    )


# Llama 3's RoPE scaling.


def divisors(factor: float, theta: float = 5000.0, half: int = 8) -> np.ndarray:
    """Return the divisors that llama.cpp's converter writes, one per frequency."""
    found = []
    for i in range(half):
        wavelength = 2 * np.pi * theta ** (i / half)
        share = (8192 / wavelength - 1) / (4 - 1)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            found.append(1 / ((1 - share) / factor + share))
    return np.array(found, np.float32)


def test_rotary_scaling(tmp_path):
    path, theta = tmp_path / 'tiny.gguf', 50000.0
    values = divisors(8.0, theta)
    assert values.min() == 1 and ((values > 1) & (values < 8)).any() and values.max() == 8
    write_tiny_gguf(
        path, metadata={'rope.freq_base': theta}, extra_tensors={'rope_freqs.weight': values}
    )
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    config = model_config('auto', str(path), 'float32')
    assert (config.rope_scaling, config.rope_theta) == (scaling, theta)
    load_base(config, str(path))
    assert message(path, rope_theta=theta) == (
        f"{path} has rope_freqs.weight = {scaling}; model 'tiny' needs None."
    )
    values[3] *= 1.01
    write_tiny_gguf(
        path, metadata={'rope.freq_base': theta}, extra_tensors={'rope_freqs.weight': values}
    )
    assert message(path, rope_theta=theta, rope_scaling=scaling) == (
        f"{path}: 'rope_freqs.weight' is not the RoPE scaling of Llama 3 (low and high "
        'frequency factors 1 and 4, original context 8192); no other scaling is implemented.'
    )


def test_a_model_with_scaling_from_a_file_without(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert message(path, rope_scaling=scaling) == (
        f"{path} has rope_freqs.weight = None; model 'tiny' needs {scaling}."
    )


def test_bfloat16_rounds_the_weights_but_not_the_norms(tmp_path):
    weights = write_tiny_gguf(tmp_path / 'tiny.gguf', 0, 'F32')
    found = load(tmp_path / 'tiny.gguf', dtype='bfloat16')
    for name, values in expected_params(weights, True).items():
        if name.endswith('kernel') or name == 'embedding':
            assert found[name].dtype == 'bfloat16'
        np.testing.assert_array_equal(found[name], values.astype(found[name].dtype))


def test_params_have_the_shapes_of_the_decoder(tmp_path):
    for tied in (True, False):
        write_tiny_gguf(tmp_path / 'tiny.gguf', 0, 'F32', tied=tied)
        found = load(tmp_path / 'tiny.gguf', tied=tied)
        shapes = nn.unbox(abstract_variables(tiny_model(tied=tied)))['params']
        expected = {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(shapes)}
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == expected


# User errors.


def message(path: pathlib.Path, model: str = 'tiny', **overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_base(preset(model, **overrides), str(path))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path):
    path = tmp_path / 'none.gguf'
    assert message(path) == f'There is no weight file {path}.'


@pytest.mark.parametrize('content', [b'', b'G', b'GGUF', b'not a model at all' * 100])
def test_not_a_gguf(tmp_path, content):
    path = tmp_path / 'text.gguf'
    path.write_bytes(content)
    text = message(path)
    assert text.startswith(f'{path} is not a complete GGUF file (')
    assert text.endswith('; download it again.')


@functools.cache
def whole_file() -> tuple[bytes, dict[str, np.ndarray]]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'tiny.gguf'
        weights = write_tiny_gguf(path, 0, 'Q8_0')
        return path.read_bytes(), expected_params(weights, True)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_never_gives_weights(share):
    content, expected = whole_file()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'cut.gguf'
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r'is not a complete GGUF file .* download it again'):
            load_base(preset('tiny'), str(path))
        path.write_bytes(content)
        assert_same(load(path), expected)


def test_a_truncated_file_within_any_tensor(tmp_path):
    content, _ = whole_file()
    path = tmp_path / 'cut.gguf'
    path.write_bytes(content)
    ends = [int(tensor.data_offset + tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors]
    for end in ends:
        for cut in (1, 2, 32):
            path.write_bytes(content[: end - cut])
            with pytest.raises(UserError, match='is not a complete GGUF file'):
                load_base(preset('tiny'), str(path))


@pytest.mark.parametrize('name', ['token_embd.weight', 'blk.1.ffn_up.weight', 'output_norm.weight'])
def test_missing_tensor(tmp_path, name):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, 0, 'F32', omit=[name])
    assert message(path) == f'{path} has no tensor {name!r}.'


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', ['token_embd.weight', 'blk.1.ffn_up.weight', 'output_norm.weight'])
def test_a_value_that_is_not_finite(tmp_path, name, value):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, 0, 'F32')
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path, 'r+').tensors}
    tensors[name].data.reshape(-1)[-1] = value
    tensors[name].data.flush()
    assert message(path) == (
        f'{path}: tensor {name!r} has a value that is not finite (NaN or infinity).'
    )


@pytest.mark.parametrize('name', ['blk.0.attn_q.bias', 'blk.2.attn_q.weight', 'more.weight'])
def test_tensors_that_have_no_place(tmp_path, name):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, extra_tensors={name: np.zeros(8, np.float32)})
    assert message(path) == (f"{path} has a tensor {name!r} that is not part of model 'tiny'.")


def test_tied_model_from_a_file_with_a_head(tmp_path):
    path = tmp_path / 'tiny.gguf'
    weights = write_tiny_gguf(path, 0, 'F32')
    embedding = weights['model.embed_tokens.weight']
    write_tiny_gguf(path, 0, 'F32', extra_tensors={'output.weight': embedding})
    assert_same(load(path), expected_params(weights, True))
    write_tiny_gguf(path, 0, 'F32', tied=False)
    assert message(path) == (
        f"{path} has a head 'output.weight' that differs from the embedding; model 'tiny' has one "
        'matrix for both.'
    )


def test_untied_model_from_a_file_without_head(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, 0, 'F32')
    assert message(path, tied=False) == f"{path} has no tensor 'output.weight'."


@pytest.mark.parametrize(
    'field, key, value',
    [
        ('num_layers', 'block_count', 3),
        ('width', 'embedding_length', 128),
        ('hidden', 'feed_forward_length', 64),
        ('num_heads', 'attention.head_count', 8),
        ('num_kv_heads', 'attention.head_count_kv', 4),
        ('head_width', 'attention.key_length', 32),
        ('rope_theta', 'rope.freq_base', 10000.0),
        ('norm_epsilon', 'attention.layer_norm_rms_epsilon', 1e-5),
    ],
)
def test_other_sizes_than_the_presets(tmp_path, field, key, value):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, 0, 'F32')
    text = message(path, **{field: value})
    assert text.startswith(f'{path} has llama.{key} = ')
    assert text.endswith(f"; model 'tiny' needs {value}.")


def test_another_vocabulary_than_the_presets(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, 0, 'F32')
    assert message(path, vocab_size=320) == (
        f"{path} has rows of token_embd.weight = 300; model 'tiny' needs 320."
    )


def test_more_tokens_than_the_model_has_room_for(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, extra_tokens=5)
    assert message(path) == (
        f"{path} has a tokenizer of 305 tokens; the embedding of model 'tiny' has only 300 rows."
    )


@pytest.mark.parametrize(
    'key, value, right',
    [
        ('rope.scaling.type', 'yarn', "'none', as nothing else is implemented"),
        ('rope.scaling.type', 'linear', "'none', as nothing else is implemented"),
        ('rope.scaling.factor', 4.0, '1.0, as nothing else is implemented'),
        ('attention.causal', False, 'True, as nothing else is implemented'),
        ('expert_count', 8, '0, as nothing else is implemented'),
        ('rope.dimension_count', 8, '16, the width of a head'),
        ('attention.value_length', 32, '16, the width of a head'),
        ('attention.head_count_kv', 0, 'a positive whole number'),
        ('attention.layer_norm_rms_epsilon', -0.5, 'a positive number'),
    ],
)
def test_metadata_that_are_not_implemented(tmp_path, key, value, right):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, metadata={key: value})
    text = message(path)
    assert text == f'{path} has llama.{key} = {value!r}; it must be {right}.'


@pytest.mark.parametrize('value', [8, 0])
def test_an_unknown_key(tmp_path, value):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, metadata={'nextn_predict_layers': value})
    assert message(path) == (
        f'{path} sets llama.nextn_predict_layers = {value}, which is not implemented.'
    )


def test_a_model_without_experts_may_say_so(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, metadata={'expert_count': 0})
    load(path)
    load_base(preset('tiny'), str(path))


def write_header(
    path: pathlib.Path,
    architecture: str,
    model: str,
    split: str,
    embedding: tuple[int, int] | None = None,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    if embedding:
        writer.add_block_count(2)
        writer.add_context_length(64)
        writer.add_embedding_length(embedding[1])
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tensor('token_embd.weight', np.zeros(embedding, np.float32))
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(['a', 'aa'])
    writer.add_token_types([gguf.TokenType.NORMAL] * 2)
    writer.add_token_merges(['a a'])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_another_architecture(tmp_path):
    path = tmp_path / 'other.gguf'
    write_header(path, 'gemma3', 'gpt2', 'smollm')
    assert message(path) == (
        f"{path} holds a model of architecture 'gemma3'; only llama, qwen2, qwen3 can be read from "
        'GGUF.'
    )
    write_header(path, 'qwen2', 'gpt2', 'smollm')
    assert message(path) == (
        f'{path} has no qwen2.embedding_length; it must be a positive whole number.'
    )


def test_another_architecture_than_the_presets(tmp_path):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path, architecture='qwen2')
    assert message(path) == (f"{path} has biases of q, k and v = True; model 'tiny' needs False.")


def test_a_preset_without_weights():
    with pytest.raises(UserError) as caught:
        find_weights(preset('tiny'), '')
    assert str(caught.value) == (
        "Model 'tiny' comes without weights: set model.weights to a GGUF file, a Hugging Face "
        "directory, or a model's name on the hub such as Qwen/Qwen3-8B."
    )


def test_weights_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(weights_lib._DISTRIBUTIONS, 'tiny', 'malora-no-such-distribution')
    with pytest.raises(
        UserError, match="The weights of 'tiny' are not installed: run `make setup`"
    ):
        find_weights(preset('tiny'), '')


def test_unknown_model():
    with pytest.raises(UserError, match=r"Unknown model 'smolm2-135m': did you mean smollm2-135m"):
        preset('smolm2-135m')


def damaged(path, key: bytes, skipped: int, value: bytes) -> None:
    """Overwrite bytes of a file at some distance after a metadata key."""
    content = bytearray(path.read_bytes())
    at = content.index(key) + len(key) + skipped
    content[at : at + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    'key, skipped, value, expected',
    [
        (
            'llama.block_count',
            4,
            2**31 - 1,
            ': model.num_layers is 2147483647; it must be at ',
        ),
        ('tokenizer.ggml.tokens', 8, 2**60, ' is not a complete GGUF file (it has a list of 1,15'),
        ('tokenizer.ggml.token_type', 4, 9, ' is not a complete GGUF file (it has a list of '),
        ('tokenizer.ggml.model', 4, 2**62, ' is not a complete GGUF file (it ends too early); '),
        ('general.architecture', 12, 0xFF, ' has general.architecture that is not UTF-8; '),
        ('tokenizer.ggml.tokens', 24, 0xFF, ' has tokenizer.ggml.tokens that is not UTF-8; '),
    ],
)
def test_damaged_metadata_are_told_in_one_line(tmp_path, key, skipped, value, expected):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path)
    size = 8 if value >= 2**32 else 1 if value == 0xFF else 4
    damaged(path, key.encode(), skipped, value.to_bytes(size, 'little'))
    with pytest.raises(UserError) as caught:
        load_base(model_config('auto', str(path), 'float32'), str(path))
    assert str(caught.value).startswith(f'{path}{expected}'), str(caught.value)
