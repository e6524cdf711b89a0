"""Runs that start from a trained adapter of ours or of `peft`."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.export.peft import write_peft
from malora_jax.models import Decoder
from malora_jax.training import train
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.state import TrainState
from malora_jax.training.step import losses, make_gradient_function, make_train_step
from malora_jax.training.warm_start import warm_start
from tests.export.helpers import TOKENS, VARIANTS, restored_model, tiny_base
from tests.helpers.models import (
    STRUCTURES,
    logits_of,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
)
from tests.helpers.runs import toy_run_config
from tests.helpers.steps import ADAMW, make_hyperparameters

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp('base'))


def fresh(model: Decoder) -> TrainState:
    """Return a state whose values are all random and differ from those of `restored_model`."""
    variables = random_variables(model, seed=9)
    return TrainState(0, variables['adapter'], variables.get('adapter_frozen', {}), ())


def started(directory: Path, base, model: Decoder):
    state = warm_start(directory, fresh(model), model, base[0])
    return state, logits_of(model, state.variables(base[0].params), TOKENS)


def logits(found) -> np.ndarray:
    return logits_of(found.model, found.variables, TOKENS)


@pytest.mark.parametrize('name', VARIANTS)
def test_what_peft_keeps_becomes_the_same_model(base, tmp_path, name):
    found = restored_model(name, *base)
    write_peft(found, tmp_path / 'peft')
    _, ours = started(tmp_path / 'peft', base, found.model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_an_exported_adapter_becomes_the_same_model(base, tmp_path, name):
    found = restored_model(name, *base)
    write_adapter(found, tmp_path / 'out')
    state, ours = started(tmp_path / 'out', base, found.model)
    np.testing.assert_array_equal(ours, logits(found))
    assert jax.tree.structure(state.adapter) == jax.tree.structure(found.variables['adapter'])


@pytest.mark.parametrize(
    ('method', 'changes'), [('mtl_lora', {'tasks': ('two', 'one')}), ('hydralora', {})]
)
def test_parameters_of_tasks_are_not_given_to_others(base, tmp_path, method, changes):
    write_adapter(restored_model('mtl_lora', *base), tmp_path / 'out')
    with pytest.raises(UserError, match='of the tasks one, two, in this order, and this run has'):
        started(tmp_path / 'out', base, tiny_model(small_method(method, **changes)))


@pytest.mark.parametrize('changes', [{'alpha': 5.0}, {'rank_stabilized': True}])
def test_another_factor_of_the_update_changes_nothing(base, tmp_path, changes):
    found = restored_model('dora', *base)
    write_peft(found, tmp_path / 'peft')
    model = tiny_model(small_method('dora', **changes))
    assert model.adapter.scale != found.model.adapter.scale
    _, ours = started(tmp_path / 'peft', base, model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


@pytest.mark.parametrize('method', ['goat', 'mlora_heads'])
def test_another_factor_of_a_residual_changes_nothing(base, tmp_path, method):
    found = restored_model(method, *base)
    write_adapter(found, tmp_path / 'out')
    model = tiny_model(small_method(method, alpha=0.5))
    _, ours = started(tmp_path / 'out', base, model)
    np.testing.assert_allclose(ours, logits(found), atol=1e-5)


BATCH = packed_batch([(20, 11), (14, 9, 8), (30,)], 32, seed=4)


def loss_by_task(model: Decoder, variables) -> np.ndarray:
    sums = jax.jit(losses, static_argnums=(0, 3))(model, variables, BATCH, 2)
    return np.asarray(sums.nll / sums.loss_tokens)


@pytest.mark.parametrize(
    'method, changes, tolerance',
    [
        # The gates of the chosen experts sum to K / E, except for the effect of a small router.
        ('molora', {'rank': 8}, 0.01),
        ('molora', {'rank': 10, 'alpha': 4.0, 'top_k': 1}, 0.01),
        ('molora', {'rank': 8, 'experts_per_layer': (2, 4)}, 0.01),
        ('molora_dispatch', {'rank': 8}, 0.01),
        ('moasylora', {'rank': 9}, 0.01),
        ('malora', {'rank': 8}, 0.01),
        ('malora', {'rank': 9, 'shared_rank': 20, 'beta': 0.5}, 0.01),
        ('malora_dispatch', {'rank': 8, 'rank_stabilized': True}, 0.01),
        ('malora_fixed_shared', {'rank': 8}, 0.01),
        # The gates sum to one.
        ('molora', {'rank': 8, 'renormalize': True}, 1e-4),
        ('malora', {'rank': 8, 'equal_gates': True}, 1e-4),
        ('malora', {'rank': 8, 'top_k': 4}, 1e-4),
        ('malora', {'rank': 8, 'num_experts': 1, 'top_k': 1}, 1e-4),
        ('hydralora', {'rank': 8, 'shared_rank': 8}, 1e-4),
        ('mtl_lora', {'rank': 9, 'shared_rank': 9}, 1e-4),
        ('hydralora', {'rank': 11, 'shared_rank': 11, 'alpha': 3.0}, 1e-4),
        ('hydralora_top2', {'rank': 8, 'shared_rank': 8}, 1e-4),
        ('alora', {'rank': 9, 'shared_rank': 9}, 1e-4),
        ('alora', {'rank': 8, 'shared_rank': 8, 'top_k': 2}, 0.01),
        ('comol', {'rank': 9, 'shared_rank': 9}, 1e-4),
        ('moslora', {'rank': 9, 'shared_rank': 9}, 1e-4),
        ('d2mora', {'rank': 9}, 1e-4),
        ('d2mora', {'rank': 8, 'top_k': 2}, 0.01),
    ],
)
def test_a_mixture_computes_what_its_lora_computes(base, tmp_path, method, changes, tolerance):
    """The tolerance is relative to the mean distance of LoRA's logits from the base model's."""
    found = restored_model('lora', *base)
    write_peft(found, tmp_path / 'peft')
    model = tiny_model(small_method(method, **changes))
    state, ours = started(tmp_path / 'peft', base, model)
    plain = logits_of(Decoder(found.model.config), {'params': base[0].params}, TOKENS)
    expected = logits(found)
    update = np.abs(expected - plain).mean()
    assert update > 0.1
    assert np.abs(ours - expected).mean() < tolerance * update
    ours, theirs, none = (
        loss_by_task(model, state.variables(base[0].params)),
        loss_by_task(found.model, found.variables),
        loss_by_task(Decoder(found.model.config), {'params': base[0].params}),
    )
    assert np.abs(ours - theirs).max() < 0.01 < 0.05 < np.abs(ours - none).max()
    # The tree and the shapes of its leaves are unchanged.
    assert jax.tree.map(np.shape, state.variables(0)) == jax.tree.map(
        np.shape, fresh(model).variables(0)
    )


def test_the_subspace_keeps_the_paper_s_scale(base, tmp_path):
    """S_A is β times an orthonormal basis, so gradients scale with β as in appendix A.3."""
    write_peft(restored_model('lora', *base), tmp_path / 'peft')
    for beta in (0.5, 2.0):
        model = tiny_model(small_method('malora', rank=9, shared_rank=20, beta=beta))
        state, _ = started(tmp_path / 'peft', base, model)
        leaves = state.adapter['layers']['attention']['q']
        gram_LSS = np.einsum('LDS,LDT->LST', leaves['shared_down'], leaves['shared_down'])
        np.testing.assert_allclose(gram_LSS, beta**2 * np.eye(20)[None].repeat(2, 0), atol=1e-5)


@pytest.mark.parametrize(
    'method, changes',
    [
        ('molora', {'rank': 8}),
        ('malora', {'rank': 8}),
        ('hydralora', {'rank': 8, 'shared_rank': 8}),
    ],
)
def test_experts_that_start_from_a_lora_diverge(base, tmp_path, method, changes):
    write_peft(restored_model('lora', *base), tmp_path / 'peft')
    model = tiny_model(small_method(method, dropout=0.0, **changes))
    optimizer = make_optimizer(ADAMW, 10)
    state = started(tmp_path / 'peft', base, model)[0]
    state = state.replace(step=jnp.int32(0), opt_state=optimizer.init(state.adapter))
    gradients, _ = jax.jit(make_gradient_function(model, 2))(
        state, base[0].params, BATCH, make_hyperparameters(model.adapter)
    )

    def least_distance(adapter) -> float:
        """The distance is that of two experts' up-projections, relative to their norm."""
        up_LERF = np.asarray(adapter['layers']['mlp']['up']['up'])
        experts = up_LERF.shape[1]
        pairs = [
            np.linalg.norm(up_LERF[:, i] - up_LERF[:, j]) for i in range(experts) for j in range(i)
        ]
        return min(pairs) / np.linalg.norm(up_LERF[:, 0])

    assert least_distance(state.adapter) < 1e-6
    # Experts have different gradients, because their tokens or gates differ.
    assert least_distance(gradients) > 0.1
    step = make_train_step(model, optimizer, learning_rate_schedule(ADAMW, 10), 2)
    for _ in range(5):
        state, metrics = step(state, base[0].params, BATCH, make_hyperparameters(model.adapter))
    assert least_distance(state.adapter) > 1e-3
    assert metrics['effective_experts'] > 3


def test_a_config_as_peft_writes_it(base, tmp_path):
    """peft_config.json was saved by peft 0.21.2 for a DoRA of this shape."""
    found = restored_model('dora', *base)
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
        ('lora', 'malora', {}, 'holds a LoRA of rank 8; adapter.rank must be at least that, not 4'),
        ('lora', 'molora', {}, 'holds a LoRA of rank 8; adapter.rank must be at least that, not 3'),
        (
            'lora',
            'malora_shared_up',
            {'rank': 8},
            "cannot start; choose 'lora', 'molora', 'malora'",
        ),
        ('lora', 'mlora_heads', {'rank': 8, 'shared_rank': 8}, 'cannot start; choose'),
        ('lora', 'malora_unshared', {'rank': 8}, "cannot start; choose 'lora', 'molora', 'malora'"),
        (
            'dora',
            'molora',
            {'rank': 8},
            'has the shape (2, 1, 64, 8) in {}; this run needs (2, 4, 64, 8)',
        ),
        ('lora', 'dora', {}, 'has no layers/attention/k/magnitude, which this method needs'),
        ('dora', 'lora', {}, 'has layers/attention/k/magnitude, which this method lacks'),
    ],
)
def test_what_does_not_fit_is_refused(base, tmp_path, source, method, changes, expected):
    write_peft(restored_model(source, *base), tmp_path / 'peft')
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
        ({'r': 64}, 'has r = 64, but the tensors in adapter_model.safetensors have rank 8.'),
        ({'peft_type': 'IA3'}, "peft_type = 'IA3', which is not implemented; it must be 'LORA'"),
    ],
)
def test_what_peft_can_and_we_cannot_is_refused(base, tmp_path, fields, expected):
    found = restored_model('lora', *base)
    write_peft(found, tmp_path / 'peft')
    path = tmp_path / 'peft' / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError) as caught:
        started(tmp_path / 'peft', base, found.model)
    assert expected in str(caught.value)


def test_broken_adapters_are_refused(base, tmp_path):
    found = restored_model('lora', *base)
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
    assert "must have 'r' and 'lora_alpha'" in message()


def test_a_run_goes_on_from_an_adapter_and_needs_it_only_once(base, tmp_path):
    adapter = small_method('lora', rank=4)
    found = restored_model('lora', *base)
    model = Decoder(found.model.config, adapter)
    found = found._replace(
        model=model, variables=random_variables(model, seed=3) | {'params': base[0].params}
    )
    write_peft(found, tmp_path / 'peft')
    settings = toy_run_config(base[1], 'lora', training__start_from=str(tmp_path / 'peft'))
    train(settings, tmp_path / 'run')
    plain = toy_run_config(base[1], 'lora')
    train(plain, tmp_path / 'plain')
    first = [
        json.loads((tmp_path / run / 'metrics.jsonl').read_text().splitlines()[0])['loss']
        for run in ('run', 'plain')
    ]
    assert abs(first[0] - first[1]) > 0.01
    shutil.rmtree(tmp_path / 'peft')
    (tmp_path / 'run' / 'results.json').unlink()
    # The remains of a first save that was killed are not a checkpoint.
    (tmp_path / 'other' / 'checkpoints' / '2.orbax-checkpoint-tmp-1').mkdir(parents=True)
    train(settings, tmp_path / 'run')
    with pytest.raises(UserError, match='start_from'):
        train(settings, tmp_path / 'other')
    assert not (tmp_path / 'other' / 'config.json').exists()
