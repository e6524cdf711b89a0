"""Runs that start from a trained adapter: ours, or one of `peft`'s."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / 'training'))
from export_helpers import TOKENS, VARIANTS, tiny_base, trained
from loop_helpers import run_settings
from model_helpers import STRUCTURES, logits_of, random_variables, small_method, tiny_model

from malora_jax.adapters.trees import named_leaves
from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.export.peft import write_peft
from malora_jax.models import Decoder
from malora_jax.training import train
from malora_jax.training.start import started_from
from malora_jax.training.state import TrainState


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp('base'))


def fresh(model: Decoder) -> TrainState:
    """A state whose every value is random and differs from what `trained` has."""
    variables = random_variables(model, seed=9)
    return TrainState(0, variables['adapter'], variables.get('adapter_frozen', {}), ())


def started(directory: Path, base, model: Decoder):
    state = started_from(directory, fresh(model), model, base[0])
    return state, logits_of(model, state.variables(base[0].params), TOKENS)


def logits(found) -> np.ndarray:
    return logits_of(found.model, found.variables, TOKENS)


@pytest.mark.parametrize('name', VARIANTS)
def test_what_peft_keeps_becomes_the_same_model(base, tmp_path, name):
    found = trained(name, *base)
    write_peft(found, tmp_path / 'peft')
    _, ours = started(tmp_path / 'peft', base, found.model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_an_exported_adapter_becomes_the_same_model(base, tmp_path, name):
    found = trained(name, *base)
    write_adapter(found, tmp_path / 'out')
    state, ours = started(tmp_path / 'out', base, found.model)
    np.testing.assert_array_equal(ours, logits(found))
    assert jax.tree.structure(state.adapter) == jax.tree.structure(found.variables['adapter'])


@pytest.mark.parametrize('changes', [{'alpha': 5.0}, {'rank_stabilized': True}])
def test_another_factor_of_the_update_changes_nothing(base, tmp_path, changes):
    found = trained('dora', *base)
    write_peft(found, tmp_path / 'peft')
    model = tiny_model(small_method('dora', **changes))
    assert model.adapter.scale != found.model.adapter.scale
    _, ours = started(tmp_path / 'peft', base, model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


def test_a_lora_becomes_the_first_expert(base, tmp_path):
    found = trained('lora', *base)
    write_peft(found, tmp_path / 'peft')
    model = tiny_model(small_method('molora', rank=8, alpha=4.0))
    state, _ = started(tmp_path / 'peft', base, model)
    before, after = (dict(named_leaves(each.adapter)) for each in (fresh(model), state))
    theirs = dict(named_leaves(found.variables['adapter']))
    for path, leaf in after.items():
        if path.endswith('router'):
            np.testing.assert_array_equal(leaf, before[path])
            continue
        # α / rank is 2 there and 0.5 here.
        factor = 4 if path.endswith('/up') else 1
        np.testing.assert_allclose(leaf[:, 0], factor * theirs[path][:, 0], rtol=1e-6)
        np.testing.assert_array_equal(leaf[:, 1:], before[path][:, 1:])


def test_a_config_as_peft_writes_it(base, tmp_path):
    """peft_config.json is what peft 0.21.2 saved of a DoRA of this shape."""
    found = trained('dora', *base)
    write_peft(found, tmp_path / 'peft')
    shutil.copy(Path(__file__).parent / 'peft_config.json', tmp_path / 'peft/adapter_config.json')
    _, ours = started(tmp_path / 'peft', base, found.model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


@pytest.mark.parametrize(
    'source, method, changes, expected',
    [
        (
            'lora',
            'lora',
            {'rank': 4},
            'has the shape (2, 1, 64, 8) in {}; this run needs',
        ),
        (
            'lora',
            'lora',
            {'targets': ('q',)},
            'adapts down, gate, k, q, up, v; adapter.targets',
        ),
        ('lora', 'malora', {}, 'has no layers/attention/k/'),
        ('lora', 'dora', {}, 'has no layers/attention/k/magnitude, which this method needs'),
        ('dora', 'lora', {}, 'has layers/attention/k/magnitude, which this method has not'),
    ],
)
def test_what_does_not_fit_is_refused(base, tmp_path, source, method, changes, expected):
    write_peft(trained(source, *base), tmp_path / 'peft')
    with pytest.raises(UserError) as caught:
        started(tmp_path / 'peft', base, tiny_model(small_method(method, **changes)))
    assert expected.replace('{}', str(tmp_path / 'peft')) in str(caught.value)
    assert str(caught.value).startswith('training.start_from: ')


@pytest.mark.parametrize(
    'fields, expected',
    [
        ({'bias': 'all'}, "bias = 'all', which is not implemented; it must be 'none'."),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights = 'pissa', which is not implemented"),
        ({'modules_to_save': ['lm_head']}, "modules_to_save = ['lm_head'], which is not"),
        ({'rank_pattern': {'q_proj': 2}}, "rank_pattern = {'q_proj': 2}, which is not"),
        ({'r': 0}, 'has r = 0 and lora_alpha = 16.0; they must be a whole number and a number'),
        ({'lora_alpha': None}, 'has r = 8 and lora_alpha = None; they must be'),
        ({'r': 64}, 'has r = 64; the tensors beside it have 8.'),
        ({'peft_type': 'IA3'}, "peft_type = 'IA3', which is not implemented; it must be 'LORA'"),
    ],
)
def test_what_peft_can_and_we_cannot_is_refused(base, tmp_path, fields, expected):
    found = trained('lora', *base)
    write_peft(found, tmp_path / 'peft')
    path = tmp_path / 'peft' / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError) as caught:
        started(tmp_path / 'peft', base, found.model)
    assert expected in str(caught.value)


def test_broken_adapters_are_refused(base, tmp_path):
    found = trained('lora', *base)
    directory = tmp_path / 'peft'

    def message() -> str:
        with pytest.raises(UserError) as caught:
            started(directory, base, found.model)
        return str(caught.value)

    assert 'holds neither an exported adapter (manifest.json) nor one of' in message()
    write_peft(found, directory)
    path = directory / 'adapter_model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    lacking = dict(tensors)
    lacking.pop('base_model.model.model.layers.1.mlp.up_proj.lora_B.weight')
    safetensors.numpy.save_file(lacking, path)
    assert 'layers.0.mlp.up_proj.lora_B.weight' in message()
    safetensors.numpy.save_file(tensors | {'score.weight': np.zeros(2, np.float32)}, path)
    assert "has a tensor 'score.weight' that belongs to no linear" in message()
    path.write_bytes(path.read_bytes()[:-5])
    assert 'is not a complete safetensors file' in message()
    path.unlink()
    assert 'has no adapter_model.safetensors; pickles (*.bin) are not read' in message()
    (directory / 'adapter_config.json').write_text('{"r": 4}')
    assert "lacks 'r', 'lora_alpha'" in message()


def test_a_run_goes_on_from_an_adapter_and_needs_it_only_once(base, tmp_path):
    adapter = small_method('lora', rank=4)
    found = trained('lora', *base)
    model = Decoder(found.model.config, adapter)
    found = found._replace(
        model=model, variables=random_variables(model, seed=3) | {'params': base[0].params}
    )
    write_peft(found, tmp_path / 'peft')
    settings = run_settings(base[1], 'lora', training__start_from=str(tmp_path / 'peft'))
    train(settings, tmp_path / 'run')
    plain = run_settings(base[1], 'lora')
    train(plain, tmp_path / 'plain')
    first = [
        json.loads((tmp_path / run / 'metrics.jsonl').read_text().splitlines()[0])['loss']
        for run in ('run', 'plain')
    ]
    assert abs(first[0] - first[1]) > 0.01
    shutil.rmtree(tmp_path / 'peft')
    (tmp_path / 'run' / 'results.json').unlink()
    # What a kill in the middle of the first save leaves is no checkpoint.
    (tmp_path / 'other' / 'checkpoints' / '2.orbax-checkpoint-tmp-1').mkdir(parents=True)
    train(settings, tmp_path / 'run')
    with pytest.raises(UserError, match='start_from'):
        train(settings, tmp_path / 'other')
    assert not (tmp_path / 'other' / 'config.json').exists()
