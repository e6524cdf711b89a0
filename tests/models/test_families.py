"""Each model family, compared with `transformers`; see fixtures/make_families.py."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.decoder import KVCache
from malora_jax.models.loading.base_model import LoadedBase, load_base, model_config
from malora_jax.models.loading.params import to_huggingface
from tests.helpers.family_weights import draw_weight
from tests.helpers.models import logits_of
from tests.helpers.paths import FIXTURES
from tests.helpers.reference_decoder import ReferenceDecoder
from tests.helpers.tiny_gguf import SHAPE, write_tiny_gguf

FAMILIES = json.loads((FIXTURES / 'families.json').read_text())['families']
LOGITS = np.load(FIXTURES / 'family_logits.npz')
# Absolute tolerance for logits with standard deviation 2; float32 itself is off by 1e-5.
TOLERANCE = 1e-4


class Recorded(NamedTuple):
    """A tiny model as `transformers` saves it.

    Attributes:
        config: Content of config.json.
        shards: File of each tensor, by name.
        weights: Tensors by name.
    """

    config: dict[str, Any]
    shards: dict[str, str]
    weights: dict[str, np.ndarray]


def recorded(family: str) -> Recorded:
    found = FAMILIES[family]
    weights = {name: draw_weight(name, tuple(shape)) for name, shape in found['shapes'].items()}
    return Recorded(found['config'], found['index']['weight_map'], weights)


def load_recorded(model: Recorded, path: pathlib.Path) -> LoadedBase:
    """Write the files of `save_pretrained` and a tokenizer, and load the model from them."""
    (path / 'config.json').write_text(json.dumps(model.config))
    index = {'metadata': {}, 'weight_map': model.shards}
    (path / 'model.safetensors.index.json').write_text(json.dumps(index))
    for shard in set(model.shards.values()):
        names = [name for name in model.shards if model.shards[name] == shard]
        save_file({name: model.weights[name] for name in names}, path / shard)
    vocabulary = {f't{i}': i for i in range(model.config['vocab_size'])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='t0'))
    tokenizer.save(str(path / 'tokenizer.json'))
    (path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': 't2'}))
    return load_auto(path)


def load_auto(path: pathlib.Path) -> LoadedBase:
    return load_base(model_config('auto', str(path), 'float32'), str(path))


@pytest.fixture(scope='module')
def bases(tmp_path_factory) -> dict[str, LoadedBase]:
    """Loaded model of each family."""
    return {
        family: load_recorded(recorded(family), tmp_path_factory.mktemp(family))
        for family in FAMILIES
    }


def logits_at_positions(config: ModelConfig, params: Any) -> np.ndarray:
    logits = logits_of(Decoder(config), {'params': params}, LOGITS['tokens'])
    return logits[:, LOGITS['positions']]


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_equal_those_of_transformers(bases, family):
    """Positions exceed the context, or the original context if RoPE is scaled."""
    base, expected = bases[family], LOGITS[family]
    scaling = base.config.rope_scaling
    context = scaling.original_context if scaling else base.config.context
    assert LOGITS['positions'].max() > 2 * context
    assert expected.std() > 1
    logits = logits_at_positions(base.config, base.params)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_reference_decoder_agrees_with_transformers(bases, family):
    base, tokens = bases[family], LOGITS['tokens']
    reference = ReferenceDecoder(base.config, {'params': base.params})
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    logits = reference(tokens, positions, np.ones_like(tokens)).logits
    found = logits[:, LOGITS['positions']]
    np.testing.assert_allclose(found, LOGITS[family], rtol=0, atol=TOLERANCE)


SCALING = dict(factor=4.0, low_frequency_factor=2.0, high_frequency_factor=3.0, original_context=64)


@pytest.mark.parametrize(
    'family, changes',
    [
        ('llama', dict(rope_theta=10000.0)),
        ('llama', dict(norm_epsilon=0.1)),
        ('llama3', dict(rope_scaling=None)),
        ('mistral', dict(rope_theta=10000.0)),
        ('qwen2', dict(qkv_bias=False)),
        ('qwen2_tied', dict(qkv_bias=False)),
        ('qwen3', dict(qk_norm=False)),
        ('qwen3_tied', dict(qk_norm=False)),
    ]
    + [('llama3', {field: value}) for field, value in SCALING.items()],
)
def test_nothing_that_a_family_has_is_without_effect(bases, family, changes):
    """The comparison of logits is sensitive: changing any of these features changes the logits."""
    base = bases[family]
    if changes.keys() <= SCALING.keys():
        changes = {'rope_scaling': dataclasses.replace(base.config.rope_scaling, **changes)}
    config = dataclasses.replace(base.config, **changes)
    difference = np.abs(logits_at_positions(config, base.params) - LOGITS[family])
    assert difference.max() > 1e-2


@pytest.mark.parametrize('family', FAMILIES)
def test_names_go_there_and_back(bases, family):
    """Our tree has a leaf for every tensor of the file, and every leaf comes from the file."""
    base, expected = bases[family], recorded(family).weights
    tensors = to_huggingface(base.config, base.params)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name, strict=True)
    scalars = sum(leaf.size for _, leaf in named_leaves(base.params))
    assert scalars == sum(tensor.size for tensor in expected.values())


@pytest.mark.parametrize('family', FAMILIES)
def test_configs_of_older_versions_say_the_same(bases, family, tmp_path):
    """Before version 5, `transformers` had a separate theta, and scaling in `rope_scaling`."""
    config = dict(recorded(family).config)
    rope = config.pop('rope_parameters')
    config['rope_theta'] = rope.pop('rope_theta')
    config['rope_scaling'] = rope if rope['rope_type'] != 'default' else None
    config['torch_dtype'] = config.pop('dtype')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    found = model_config('auto', str(tmp_path), 'float32')
    assert dataclasses.replace(found, name=bases[family].config.name) == bases[family].config


@pytest.mark.parametrize('family, tied', [('llama', False), ('qwen2', True), ('qwen3', False)])
def test_a_gguf_file_holds_the_same_model(family, tied, tmp_path):
    """Models loaded from the two formats are bitwise equal."""
    path = tmp_path / 'model.gguf'
    weights = write_tiny_gguf(path, 0, 'F32', tied=tied, architecture=family)
    numbers = dataclasses.asdict(SHAPE)
    rope = {'rope_type': 'default', 'rope_theta': numbers.pop('rope_theta')}
    changes = {'rope_parameters': rope, 'tie_word_embeddings': tied}
    config = FAMILIES[family]['config'] | numbers | changes
    shards = dict.fromkeys(weights, 'model-00001-of-00001.safetensors')
    expected, found = load_recorded(Recorded(config, shards, weights), tmp_path), load_auto(path)
    # The file's metadata contain another context length.
    same = dict(name=expected.config.name, context=expected.config.context)
    assert dataclasses.replace(found.config, **same) == expected.config
    leaves = dict(named_leaves(expected.params))
    assert [name for name, _ in named_leaves(found.params)] == [*leaves]
    for name, leaf in named_leaves(found.params):
        np.testing.assert_array_equal(leaf, leaves[name], err_msg=name, strict=True)


@pytest.mark.parametrize('family', ['llama3', 'qwen2', 'qwen3'])
def test_logits_after_a_past(bases, family):
    """Prefill a prompt at once, then decode the rest, with a cache larger than needed."""
    base, (B, T), prompt = bases[family], LOGITS['tokens'].shape, 100
    model, variables = Decoder(base.config), {'params': base.params}
    positions = np.broadcast_to(np.arange(T), (B, T))
    ones = np.ones((B, T), np.int32)

    @jax.jit
    def run(past, tokens, positions, segments):
        return model.apply(variables, tokens, positions, segments, past=past, return_kv=True)

    arrays = (LOGITS['tokens'], positions, ones)
    first, (k, v) = run(None, *(array[:, :prompt] for array in arrays))
    k = np.pad(k, [(0, 0)] * 4 + [(0, 7)], constant_values=9.0)
    v = np.pad(v, [(0, 0)] * 3 + [(0, 7), (0, 0)], constant_values=9.0)
    past = KVCache(k, v, np.full(B, prompt))
    hidden = [first, run(past, *(array[:, prompt:] for array in arrays))[0]]
    head = base.params['embedding' if base.config.tied else 'head']
    logits = np.concatenate(hidden, axis=1)[:, LOGITS['positions']] @ head.T
    np.testing.assert_allclose(logits, LOGITS[family], rtol=0, atol=TOLERANCE)
