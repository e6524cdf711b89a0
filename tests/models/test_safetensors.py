"""Weights from safetensors files, whole and in shards, and broken files."""

import dataclasses
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from malora_jax.adapters.trees import named_leaves
from malora_jax.errors import UserError
from malora_jax.models import ModelConfig, preset
from malora_jax.models.loading import params as params_lib
from malora_jax.models.loading.params import load_params, to_huggingface
from malora_jax.models.loading.safetensors_files import SafetensorsFiles
from tests.helpers.models import random_variables, tiny_model

CONFIG = preset('tiny', tied=False, qkv_bias=True, qk_norm=True)
PARAMS = random_variables(tiny_model(tied=False, qkv_bias=True, qk_norm=True))['params']
WEIGHTS = to_huggingface(CONFIG, PARAMS)
INDEX = 'model.safetensors.index.json'
Q = 'model.layers.1.self_attn.q_proj.weight'


def write_shards(path: pathlib.Path, weights: dict[str, np.ndarray], count: int = 3) -> None:
    """Write the tensors to shards, with their index."""
    shard_of = {}
    for number in range(count):
        shard = f'model-{number + 1:05d}-of-{count:05d}.safetensors'
        held = dict(list(weights.items())[number::count])
        save_file(held, path / shard)
        shard_of |= dict.fromkeys(held, shard)
    (path / INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': shard_of}))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Read every matrix in many blocks that do not divide its rows evenly."""
    monkeypatch.setattr(params_lib, '_BLOCK_SIZE', 500)


def load(path: pathlib.Path, config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    params = load_params(SafetensorsFiles(path), config)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}


def message(path: pathlib.Path, config: ModelConfig = CONFIG) -> str:
    with pytest.raises(UserError) as caught:
        load(path, config)
    text = str(caught.value)
    assert '\n' not in text and text.startswith(str(path))
    return text.removeprefix(str(path))


def assert_params(found: dict[str, np.ndarray], dtype=np.float32) -> None:
    expected = dict(named_leaves(PARAMS))
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        right = np.asarray(expected[name]).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(leaf.astype(np.float32), right, err_msg=name)


def test_names_are_unique_and_complete():
    scalars = sum(leaf.size for _, leaf in named_leaves(PARAMS))
    assert sum(tensor.size for tensor in WEIGHTS.values()) == scalars
    # A layer has 7 matrices, 2 norms, 3 biases and 2 norms of heads; the others are the embedding,
    # the final norm and the head.
    assert len(WEIGHTS) == 2 * 14 + 3
    kernel = np.asarray(PARAMS['layers']['attention']['q']['kernel'])
    np.testing.assert_array_equal(WEIGHTS[Q], kernel[1].T)


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shards', [False, True])
def test_params_are_what_the_files_hold(tmp_path, shards, dtype):
    weights = {name: tensor.astype(dtype) for name, tensor in WEIGHTS.items()}
    if shards:
        write_shards(tmp_path, weights)
    else:
        save_file(weights, tmp_path / 'model.safetensors')
    assert_params(load(tmp_path), dtype)


def test_a_bfloat16_model_has_its_norms_in_float32(tmp_path):
    save_file(WEIGHTS, tmp_path / 'model.safetensors')
    found = load(tmp_path, dataclasses.replace(CONFIG, dtype='bfloat16'))
    for name, leaf in named_leaves(PARAMS):
        right = np.asarray(leaf)
        if not name.endswith('scale'):
            right = right.astype(ml_dtypes.bfloat16)
        assert found[name].dtype == right.dtype, name
        np.testing.assert_array_equal(found[name], right, err_msg=name)


def test_some_rows(tmp_path):
    save_file(WEIGHTS, tmp_path / 'model.safetensors')
    file, tensor = SafetensorsFiles(tmp_path), WEIGHTS[Q]
    for start, stop in ((0, 1), (0, len(tensor)), (5, 12), (len(tensor) - 3, len(tensor))):
        found = file.read_rows(Q, tensor.shape, start, stop)
        np.testing.assert_array_equal(found, tensor[start:stop])


def test_old_files_with_rotary_frequencies(tmp_path):
    old = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(8, np.float32)}
    save_file(WEIGHTS | old, tmp_path / 'model.safetensors')
    assert_params(load(tmp_path))


# A tied model.

TIED = preset('tiny')


def test_tied_model_with_and_without_a_head(tmp_path):
    weights = to_huggingface(TIED, random_variables(tiny_model())['params'])
    assert 'lm_head.weight' not in weights
    save_file(weights, tmp_path / 'model.safetensors')
    plain = load(tmp_path, TIED)
    head = weights['model.embed_tokens.weight'].copy()
    save_file(weights | {'lm_head.weight': head}, tmp_path / 'model.safetensors')
    for name, leaf in load(tmp_path, TIED).items():
        np.testing.assert_array_equal(leaf, plain[name])
    head[-1, -1] += 1e-3
    save_file(weights | {'lm_head.weight': head}, tmp_path / 'model.safetensors')
    assert message(tmp_path, TIED) == (
        " has a head 'lm_head.weight' that differs from the embedding; model 'tiny' has one matrix "
        'for both.'
    )


# Broken files.


def test_no_weights(tmp_path):
    assert message(tmp_path) == f' has neither model.safetensors nor {INDEX}.'
    (tmp_path / 'pytorch_model.bin').write_bytes(b'')
    assert message(tmp_path) == (
        ' has its weights as pickles (*.bin), which are not read: save the model as safetensors.'
    )


@pytest.mark.parametrize('share', [0, 0.0001, 0.001, 0.01, 0.5, 0.9999])
def test_a_truncated_file(tmp_path, share):
    file = tmp_path / 'model.safetensors'
    save_file(WEIGHTS, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    text = message(tmp_path)
    assert text.startswith('/model.safetensors is not a complete safetensors file (')
    assert text.endswith('); download it again.')


def test_a_truncated_shard(tmp_path):
    write_shards(tmp_path, WEIGHTS)
    shard = tmp_path / 'model-00002-of-00003.safetensors'
    shard.write_bytes(shard.read_bytes()[:-1])
    text = message(tmp_path)
    assert text.startswith(f'/{shard.name} is not a complete safetensors file (')


def test_a_missing_shard(tmp_path):
    write_shards(tmp_path, WEIGHTS)
    (tmp_path / 'model-00002-of-00003.safetensors').unlink()
    assert message(tmp_path) == (
        f" lacks the shard 'model-00002-of-00003.safetensors' that {INDEX} names."
    )


@pytest.mark.parametrize('shard', ['../outside.safetensors', '/etc/hostname', 3, ''])
def test_an_index_that_points_elsewhere(tmp_path, shard):
    inside = tmp_path / 'model'
    inside.mkdir()
    save_file(WEIGHTS, tmp_path / 'outside.safetensors')
    (inside / INDEX).write_text(json.dumps({'weight_map': {Q: shard}}))
    told = message(inside)
    if isinstance(shard, str):
        assert told == f' lacks the shard {shard!r} that {INDEX} names.'
    else:
        assert f'weight_map.{Q} is 3; it must be text in quotes' in told


def test_an_index_that_names_a_tensor_that_is_not_there(tmp_path):
    write_shards(tmp_path, WEIGHTS)
    shard = next(path for path in tmp_path.glob('*.safetensors') if Q in load_file(path))
    held = load_file(shard)
    del held[Q]
    save_file(held, shard)
    assert message(tmp_path) == (f'/{shard.name} has no tensor {Q!r}, which {INDEX} places there.')


def test_a_tensor_that_the_index_does_not_name(tmp_path):
    write_shards(tmp_path, WEIGHTS)
    shard = sorted(tmp_path.glob('*.safetensors'))[0]
    save_file(load_file(shard) | {'a.bias': np.ones(3, np.float32)}, shard)
    assert message(tmp_path) == f"/{shard.name} has a tensor 'a.bias' that {INDEX} does not name."


@pytest.mark.parametrize('index', [{}, [], {'weight_map': None}, {'weight_map': []}])
def test_an_index_without_a_map(tmp_path, index):
    (tmp_path / INDEX).write_text(json.dumps(index))
    told = message(tmp_path)
    assert told.startswith(f'/{INDEX}: ')
    assert 'weight_map is missing' in told or 'it must be an object with fields' in told
    assert told.endswith(': download it again.')


def test_an_index_that_is_not_json(tmp_path):
    write_shards(tmp_path, WEIGHTS)
    (tmp_path / INDEX).write_text('{"weight_map": ')
    assert message(tmp_path).startswith(f'/{INDEX} is not valid JSON (')


@pytest.mark.parametrize('name', [Q, 'model.norm.weight', 'lm_head.weight'])
def test_a_missing_tensor(tmp_path, name):
    weights = {key: tensor for key, tensor in WEIGHTS.items() if key != name}
    save_file(weights, tmp_path / 'model.safetensors')
    assert message(tmp_path) == f' has no tensor {name!r}.'


@pytest.mark.parametrize(
    'name, shape, right',
    [(Q, (32, 64), (64, 64)), ('model.norm.weight', (64, 1), (64,)), (Q, (4096,), (64, 64))],
)
def test_a_wrong_shape(tmp_path, name, shape, right):
    save_file(WEIGHTS | {name: np.ones(shape, np.float32)}, tmp_path / 'model.safetensors')
    assert message(tmp_path) == f': tensor {name!r} has shape {shape}; the model needs {right}.'


@pytest.mark.parametrize('dtype, name', [(np.float64, 'F64'), (np.int8, 'I8')])
def test_a_type_that_is_not_read(tmp_path, dtype, name):
    save_file(WEIGHTS | {Q: WEIGHTS[Q].astype(dtype)}, tmp_path / 'model.safetensors')
    assert message(tmp_path) == (
        f': tensor {Q!r} is stored as {name}; only F32, BF16, F16 can be read.'
    )


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('name', [Q, 'model.norm.weight', 'model.layers.0.self_attn.k_proj.bias'])
def test_a_value_that_is_not_finite(tmp_path, name, dtype, value):
    tensor = WEIGHTS[name].astype(dtype)
    tensor.reshape(-1)[-1] = value
    save_file(WEIGHTS | {name: tensor}, tmp_path / 'model.safetensors')
    assert message(tmp_path) == (
        f': tensor {name!r} has a value that is not finite (NaN or infinity).'
    )


@pytest.mark.parametrize(
    'name', ['model.layers.0.self_attn.o_proj.bias', 'model.layers.2.input_layernorm.weight', 'x']
)
def test_tensors_that_have_no_place(tmp_path, name):
    save_file(WEIGHTS | {name: np.ones(64, np.float32)}, tmp_path / 'model.safetensors')
    assert message(tmp_path) == (f" has a tensor {name!r} that is not part of model 'tiny'.")
