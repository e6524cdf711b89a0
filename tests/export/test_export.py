"""Exports, loaded by us and by `peft` and `transformers` (see make_exports.py)."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

import malora_jax
from malora_jax.adapters import method
from malora_jax.adapters.trees import named_leaves
from malora_jax.data import end_token_id
from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.export.huggingface import write_base, write_merged
from malora_jax.export.peft import read_peft, write_peft
from malora_jax.inference import load_all
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.base_model import load_base
from tests.export.helpers import TOKENS, VARIANTS, restored_model, tiny_base
from tests.helpers.models import STRUCTURES, logits_of, random_variables, small_method, tiny_model

# Logits of `peft` and `transformers` for our exports, in float32.
LOGITS = np.load(Path(__file__).parents[1] / 'fixtures' / 'export_logits.npz')
TOLERANCE = 1e-4

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp('base'))


def refused(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


# Adapters.


@pytest.mark.parametrize('name', [name for name in STRUCTURES if not small_method(name).tasks])
def test_an_adapter_is_loaded_to_the_same_values(base, tmp_path, name):
    before = restored_model(name, *base)
    write_adapter(before, tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        *('manifest.json', 'adapter.safetensors')
    }
    after = malora_jax.load(tmp_path / 'out')
    assert after.model == before.model and after.template == before.template
    for collection, tree in before.variables.items():
        found = dict(named_leaves(after.variables[collection]))
        for path, leaf in named_leaves(tree):
            np.testing.assert_array_equal(found[path], leaf, strict=True)
    expected = logits_of(before.model, before.variables, TOKENS)
    np.testing.assert_array_equal(logits_of(after.model, after.variables, TOKENS), expected)


def test_the_base_may_lie_elsewhere(base, tmp_path):
    write_adapter(restored_model('malora', base[0], '/nowhere/tiny.gguf'), tmp_path / 'out')
    message = refused(malora_jax.load, tmp_path / 'out')
    assert '/nowhere/tiny.gguf' in message
    assert malora_jax.load(tmp_path / 'out', base[1]).model.adapter.num_experts == 4


def test_bases_that_are_kept_in_other_ways_are_told_apart(base, tmp_path):
    found = restored_model('malora', *base)
    write_adapter(found, tmp_path / 'plain')
    write_adapter(found, tmp_path / 'int8')
    path = tmp_path / 'int8' / 'manifest.json'
    manifest = json.loads(path.read_text())
    manifest['model']['quantize'] = 'int8'
    path.write_text(json.dumps(manifest))
    message = refused(load_all, [tmp_path / 'plain', tmp_path / 'int8'])
    assert f'tiny in float32 from {base[1]} and tiny in int8 from {base[1]}.' in message


def test_another_base_is_refused(base, tmp_path):
    found = restored_model('malora', *base)
    params = jax.tree.map(lambda x: x, base[0].params)
    params['layers']['mlp']['up']['kernel'] = params['layers']['mlp']['up']['kernel'] * 1.1
    other = base[0]._replace(params=params)
    write_adapter(found._replace(base=other), tmp_path / 'out')
    message = refused(malora_jax.load, tmp_path / 'out')
    assert message.startswith(
        f'{tmp_path / "out"} was trained on other base weights of tiny than those loaded '
        '(fingerprint '
    )


def change(directory: Path, **fields) -> Path:
    path = directory / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def test_another_tokenizer_is_refused(base, tmp_path):
    write_adapter(restored_model('malora', *base), tmp_path / 'out')
    change(tmp_path / 'out', tokenizer='0' * 32)
    assert 'was trained with another tokenizer' in refused(malora_jax.load, tmp_path / 'out')


def test_broken_exports_are_refused(base, tmp_path):
    write_adapter(restored_model('malora', *base), tmp_path / 'out')
    content = (tmp_path / 'out' / 'adapter.safetensors').read_bytes()
    for damaged in (content[:-4], content[:-1] + bytes([content[-1] ^ 1])):
        (tmp_path / 'out' / 'adapter.safetensors').write_bytes(damaged)
        assert 'export it again' in refused(malora_jax.load, tmp_path / 'out')
    path = change(tmp_path / 'out', version=2, made_by='malora_jax 9.9')
    assert refused(malora_jax.load, tmp_path / 'out') == (
        f'{path} has version 2, made by malora_jax 9.9; malora_jax {malora_jax.__version__} '
        'reads versions up to 1: upgrade malora_jax.'
    )
    change(tmp_path / 'out', format='other')
    assert 'is not the manifest of an exported' in refused(malora_jax.load, tmp_path / 'out')
    change(tmp_path / 'out', format='malora_jax adapter', version=1, adapter=None)
    assert refused(malora_jax.load, tmp_path / 'out') == (
        f'{path}: adapter is None; it must be an object with fields: export it again.'
    )


def test_nothing_is_overwritten(base, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine').touch()
    for write in (write_adapter, write_peft, write_merged):
        message = refused(write, restored_model('lora', *base), tmp_path / 'out')
        assert message == f'--output: {tmp_path / "out"} exists already; choose a new directory.'
    assert [path.name for path in tmp_path.iterdir()] == ['out']


# Exports that other libraries load.


@pytest.mark.parametrize('name', VARIANTS)
def test_a_merged_model_says_what_the_adapted_one_does(base, tmp_path, name):
    found = restored_model(name, *base)
    expected = logits_of(found.model, found.variables, TOKENS)
    plain = logits_of(Decoder(found.model.config), {'params': base[0].params}, TOKENS)
    assert np.abs(expected - plain).max() > 0.1
    write_merged(found, tmp_path / 'out')
    merged = load_base(preset('tiny'), str(tmp_path / 'out'))
    logits = logits_of(Decoder(merged.config), {'params': merged.params}, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    np.testing.assert_allclose(LOGITS[f'merged_{name}'], expected, atol=TOLERANCE)
    text = 'Why? <|im_end|> 12'
    assert merged.tokenizer.encode(text) == base[0].tokenizer.encode(text)
    # The end token of an answer in training, even if the base model ends texts differently.
    assert merged.tokenizer.eos_id == end_token_id(base[0].tokenizer, found.template) == 2


def test_the_base_model_alone_is_that_of_the_training(base, tmp_path):
    write_base(restored_model('malora', *base), tmp_path / 'out')
    again = load_base(preset('tiny'), str(tmp_path / 'out'))
    for (path, leaf), (_, found) in zip(
        named_leaves(base[0].params), named_leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(found, leaf, strict=True, err_msg=path)
    text = 'Why? <|im_end|> 12'
    assert again.tokenizer.encode(text) == base[0].tokenizer.encode(text)


@pytest.mark.parametrize('name', VARIANTS)
def test_peft_says_what_we_do(base, tmp_path, name):
    """The recorded logits belong to exactly these tensors, which their sums confirm."""
    found = restored_model(name, *base)
    write_peft(found, tmp_path / 'out')
    tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'adapter_model.safetensors')
    kept = {key.removeprefix(f'{name}/'): LOGITS[key] for key in LOGITS if key.startswith(name)}
    assert tensors.keys() == kept.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(array.sum(dtype=np.float64), kept[key], err_msg=key)
    expected = logits_of(found.model, found.variables, TOKENS)
    np.testing.assert_allclose(LOGITS[f'peft_{name}'], expected, atol=TOLERANCE)


@pytest.mark.parametrize('changes', [{}, {'rank_stabilized': True, 'targets': ('q', 'down')}])
def test_heads_and_their_residual_are_one_lora(base, tmp_path, changes):
    found = restored_model('mlora_heads', *base)
    model = tiny_model(small_method('mlora_heads', **changes))
    variables = random_variables(model, seed=3) | {'params': base[0].params}
    found = found._replace(model=model, variables=variables)
    expected = logits_of(found.model, found.variables, TOKENS)
    plain = logits_of(Decoder(model.config), {'params': base[0].params}, TOKENS)
    assert np.abs(expected - plain).max() > 0.1

    write_peft(found, tmp_path / 'peft')
    leaves, scale = read_peft(tmp_path / 'peft', model.config)
    # Twice the rank 5 of a head.
    lora = method('lora', rank=10, alpha=10 * scale, targets=model.adapter.targets)
    tree = {'params': base[0].params, 'adapter': unflatten_dict(leaves, sep='/')}
    np.testing.assert_allclose(
        logits_of(Decoder(model.config, lora), tree, TOKENS), expected, atol=TOLERANCE
    )
    write_merged(found, tmp_path / 'merged')
    merged = load_base(preset('tiny'), str(tmp_path / 'merged'))
    logits = logits_of(Decoder(merged.config), {'params': merged.params}, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


@pytest.mark.parametrize('name', ['adamole', 'smora', 'flylora', 'goat'])
def test_the_formats_that_are_named_support_the_mixture(base, tmp_path, name):
    found = refused(write_merged, restored_model(name, *base), tmp_path / 'out')
    assert 'use --format=transformers, static or adapter, or train' in found


@pytest.mark.parametrize('write, what', [(write_peft, 'peft'), (write_merged, 'merged')])
def test_what_cannot_be_merged_is_refused(base, tmp_path, write, what):
    assert refused(write, restored_model('malora', *base), tmp_path / 'out') == (
        f'malora cannot be exported as {what}: its update is not that of one LoRA; use '
        "--format=transformers, vllm, static or adapter, or train 'lora', 'dora', 'asylora' or "
        "'moslora'."
    )
    found = restored_model('lora', *base)
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if 'up' in str(path[-1]) else x, found.variables['adapter']
    )
    unchanged = found._replace(variables=found.variables | {'adapter': zero})
    for nothing in (unchanged, found._replace(step=0)):
        assert 'would change nothing' in refused(write, nothing, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_export_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors.numpy, 'save_file', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_merged(restored_model('lora', *base), tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
