"""Runs whose experts are trained LoRAs of ours or of `peft`, one per expert."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from malora_jax.adapters import method
from malora_jax.adapters.alignment import TaskMoments, task_moments
from malora_jax.adapters.settings import settings_of
from malora_jax.adapters.trees import named_leaves
from malora_jax.analysis.adapter_weights import read_adapter
from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.export.peft import write_peft
from malora_jax.models import Decoder
from malora_jax.training import run_config, train
from malora_jax.training.lora_experts import leading_directions, start_experts
from malora_jax.training.setup import build_setup
from malora_jax.training.state import TrainState, initial_variables
from malora_jax.training.task_routers import add_moments, discriminants, start_task_routers
from tests.export.helpers import TOKENS, restored_model, tiny_base
from tests.helpers.models import logits_of, random_variables, small_method, tiny_model
from tests.helpers.runs import STEPS, toy_run_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

# Settings of each LoRA, and the function that saves it.
LORAS = {
    'low': (dict(rank=4, alpha=3.0), write_adapter),
    'stable': (dict(rank=8, alpha=2.0, rank_stabilized=True), write_adapter),
    'peft': (dict(rank=8, alpha=20.0), write_peft),
}
EXPERTS = dict(num_experts=3, rank=8, dropout=0.0)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp('base'))


@pytest.fixture(scope='module')
def loras(base, tmp_path_factory):
    """Save the LoRAs; return the restored model and the directory of each, by name."""
    saved = {}
    for seed, (name, (settings, write)) in enumerate(LORAS.items()):
        model = tiny_model(small_method('lora', **settings))
        variables = random_variables(model, seed=seed) | {'params': base[0].params}
        found = restored_model('lora', *base)._replace(model=model, variables=variables)
        saved[name] = found, tmp_path_factory.mktemp('loras') / name
        write(*saved[name])
    return saved


def directories(loras):
    return [directory for _, directory in loras.values()]


def started(model: Decoder, base, loras, router_start='random', variables=None) -> TrainState:
    variables = variables or random_variables(model, seed=9)
    state = TrainState(0, variables['adapter'], variables.get('adapter_frozen', {}), ())
    return start_experts(directories(loras), state, model, base[0], router_start)


def run_start(config, base, loras):
    """Return the leaves before the first step of a run."""
    model, start = Decoder(config.model, config.adapter), config.training.router_start
    return started(model, base, loras, start, initial_variables(model, config.seed)).leaves()


def relative_error(found, expected) -> float:
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def lora_of(loras, weights) -> tuple[Decoder, dict]:
    """Return one LoRA whose update is the sum of all updates with these weights, and its leaves."""
    model, leaves = tiny_model(method('lora', rank=20, alpha=20.0)), {}
    trees = [dict(named_leaves(found.variables['adapter'])) for found, _ in loras.values()]
    scales = [found.model.adapter.scale for found, _ in loras.values()]
    for path in trees[0]:
        if path.endswith('/down'):
            leaves[path] = np.concatenate([tree[path] for tree in trees], axis=-1)
        else:
            factors = np.float32(np.multiply(weights, scales))
            parts = [factor * tree[path] for factor, tree in zip(factors, trees, strict=True)]
            leaves[path] = np.concatenate(parts, axis=-2)
    return model, {'adapter': unflatten_dict(leaves, sep='/')}


@pytest.mark.parametrize('expert', range(3))
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'rank': 10, 'alpha': 5.0, 'rank_stabilized': True},
        {'frozen': ('down', 'up')},
        {'dispatch': True},
    ],
)
def test_an_expert_with_the_gate_one_is_its_lora(base, loras, expert, changes):
    """A balancing bias chooses the expert of all tokens, and the only gate is one."""
    routing = {'top_k': 1, 'equal_gates': True, 'bias_rate': 0.1}
    model = tiny_model(small_method('molora', **EXPERTS | routing | changes))
    state = started(model, base, loras)
    one_hot = np.tile(100 * np.eye(3, dtype=np.float32)[expert], (2, 1))
    state = state.replace_leaves(
        {path: one_hot for path in state.leaves() if path.endswith('/balance_bias')}
    )
    ours = logits_of(model, state.variables(base[0].params), TOKENS)
    found, _ = [*loras.values()][expert]
    expected = logits_of(found.model, found.variables, TOKENS)
    plain = logits_of(Decoder(found.model.config), {'params': base[0].params}, TOKENS)
    assert relative_error(ours, expected) < 1e-5 < 0.1 < relative_error(plain, expected)


@pytest.mark.parametrize(
    ('changes', 'weight'), [({}, 1 / 3), ({'renormalize': True, 'gates_sum_to_k': True}, 1)]
)
def test_equal_gates_average_or_add_up_the_loras(base, loras, changes, weight):
    model = tiny_model(small_method('molora', **EXPERTS, top_k=3, **changes))
    state = started(model, base, loras)
    state = state.replace_leaves(
        {path: 0 * leaf for path, leaf in state.leaves().items() if path.endswith('/router')}
    )
    ours = logits_of(model, state.variables(base[0].params), TOKENS)
    lora, leaves = lora_of(loras, [weight] * 3)
    expected = logits_of(lora, leaves | {'params': base[0].params}, TOKENS)
    assert relative_error(ours, expected) < 1e-5


def test_other_leaves_keep_their_values(base, loras):
    model = tiny_model(small_method('molora', **EXPERTS | {'rank': 10}))
    state = started(model, base, loras)
    fresh = dict(named_leaves(random_variables(model, seed=9)['adapter']))
    assert state.leaves().keys() == fresh.keys()
    for path, leaf in state.leaves().items():
        if path.endswith('/router'):
            np.testing.assert_array_equal(leaf, fresh[path])
        elif path.endswith('/down'):
            # Ranks that a LoRA does not have can learn: their B is zero, but their A is not.
            np.testing.assert_array_equal(leaf[:, 0, :, 4:], fresh[path][:, 0, :, 4:])
        else:
            assert np.any(leaf[:, 0, :4]) and not np.any(leaf[:, 0, 4:])


# Arrow.


def test_arrow_rows_are_the_leading_right_singular_vectors(base, loras):
    model = tiny_model(small_method('molora', **EXPERTS, scores='absolute', renormalize=True))
    state = started(model, base, loras, 'arrow')
    for expert, (found, _) in enumerate(loras.values()):
        leaves = {
            path: np.asarray(leaf, np.float64)
            for path, leaf in named_leaves(found.variables['adapter'])
        }
        for path, router_LDE in state.leaves().items():
            linear, _, name = path.rpartition('/')
            if name == 'router':
                for layer in range(2):
                    down_DR, up_RF = (leaves[f'{linear}/{f}'][layer, 0] for f in ('down', 'up'))
                    _, _, right_FD = np.linalg.svd((down_DR @ up_RF).T)
                    cosine = router_LDE[layer, :, expert] @ right_FD[0]
                    assert abs(cosine) == pytest.approx(1, abs=1e-6)
                    assert np.linalg.norm(router_LDE[layer, :, expert]) == pytest.approx(1)


def test_a_lora_without_an_update_has_no_direction():
    rng = np.random.default_rng(0)
    down_LDR, up_LRF = rng.normal(size=(2, 6, 3)), np.zeros((2, 3, 2))
    up_LRF[1] = rng.normal(size=(3, 2))
    found_LD = leading_directions(down_LDR, up_LRF)
    assert not np.any(found_LD[0])
    assert np.linalg.norm(found_LD[1]) == pytest.approx(1)


# Runs.


def test_a_run_with_frozen_experts_trains_only_routers_and_reads_the_loras_once(
    base, loras, tmp_path
):
    copies = [tmp_path / name for name in loras]
    for source, copy in zip(directories(loras), copies, strict=True):
        shutil.copytree(source, copy)
    settings = toy_run_config(
        base[1],
        'molora',
        adapter__num_experts=3,
        adapter__rank=8,
        adapter__frozen=('down', 'up'),
        adapter__scores='absolute',
        adapter__renormalize=True,
        training__start_from=','.join(map(str, copies)),
        training__router_start='arrow',
    )
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(settings, whole)
    config = run_config(settings)
    finished = read_adapter(whole, config, STEPS)
    first = run_start(config, base, loras)
    for path, leaf in named_leaves(finished['adapter_frozen']):
        np.testing.assert_array_equal(leaf, first[path])
    trained = dict(named_leaves(finished['adapter']))
    assert {path.rsplit('/', 1)[-1] for path in trained} == {'router'}
    for path, leaf in trained.items():
        assert np.any(leaf != first[path])
    # As after a kill: the last checkpoint and the results do not exist.
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / 'checkpoints' / str(STEPS))
    (parts / 'results.json').unlink()
    for copy in copies:
        shutil.rmtree(copy)
    train(settings, parts)
    resumed = read_adapter(parts, config, STEPS)
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, finished))
    with pytest.raises(UserError, match='holds neither an exported adapter'):
        train(settings, tmp_path / 'other')


def test_routers_and_experts_train_together(base, loras, tmp_path):
    settings = toy_run_config(
        base[1],
        'molora',
        adapter__num_experts=3,
        adapter__rank=8,
        training__start_from=', '.join(map(str, directories(loras))),
    )
    train(settings, tmp_path / 'run')
    config = run_config(settings)
    finished = read_adapter(tmp_path / 'run', config, STEPS)
    first = run_start(config, base, loras)
    assert not any(
        np.array_equal(leaf, first[path]) for path, leaf in named_leaves(finished['adapter'])
    )


# Routers from tasks.


def test_discriminants_are_those_of_each_layer_by_hand():
    rng = np.random.default_rng(0)
    tokens, mean, variance = (
        rng.integers(5, 9, (2, 3)),
        rng.normal(size=(2, 3, 6)),
        rng.uniform(0.5, 2, (2, 3, 6)),
    )
    variance[:, :, 4] = 0
    found_LQG = discriminants(TaskMoments(tokens, mean, variance))
    for layer in range(2):
        pooled = np.average(variance[layer], axis=0, weights=tokens[layer])
        kept = pooled > 0
        inverse = np.linalg.inv(np.diag(pooled[kept]))
        center = mean[layer].mean(axis=0)[kept]
        for task in range(3):
            offset = mean[layer, task][kept] - center
            offset -= center * (center @ inverse @ offset) / (center @ inverse @ center)
            np.testing.assert_allclose(found_LQG[layer, kept, task], inverse @ offset)
        np.testing.assert_allclose(center @ found_LQG[layer, kept], 0, atol=1e-12)
        assert not np.any(found_LQG[layer, ~kept])


def test_routers_from_tasks_choose_the_expert_of_the_task(base, loras, tmp_path):
    settings = toy_run_config(
        base[1],
        'molora',
        adapter__num_experts=2,
        adapter__top_k=1,
        adapter__rank=8,
        adapter__frozen=('down', 'up'),
        training__start_from=','.join(map(str, directories(loras)[:2])),
        training__router_start='tasks',
    )
    setup = build_setup(run_config(settings), base[0])
    two = {name: loras[name] for name in ('low', 'stable')}
    experts = started(setup.model, base, two, variables=initial_variables(setup.model, 0))
    shares = []
    for state in (experts, start_task_routers(experts, setup)):
        sums = setup.held_out_routing(state.variables(base[0].params))
        load_GE = sum(each.load.sum(axis=0) for each in sums.values())
        shares.append(load_GE / load_GE.sum(axis=1, keepdims=True))
    random, found = shares
    # The tasks differ in few of their tokens: one copies the digits that the other one reverses.
    assert np.trace(found) > np.trace(random) + 0.1
    assert np.diag(found).min() > 0.54


def test_moments_of_batches_add_up_to_those_of_all_tokens():
    rng = np.random.default_rng(0)
    x_NQ, groups_NG = rng.normal(size=(30, 4)), np.eye(2)[rng.integers(0, 2, 30)]
    parts = [
        jax.tree.map(lambda each: np.asarray(each)[None], task_moments(x_NQ[rows], groups_NG[rows]))
        for rows in (slice(0, 11), slice(11, None))
    ]
    whole = task_moments(x_NQ, groups_NG)
    for found, expected in zip(add_moments(*parts), whole, strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


# Messages.


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (
            {'training__start_from': 'a,,b'},
            "training.start_from is 'a,,b'; it must be directories between commas.",
        ),
        (
            {'training__start_from': 'a,b,c'},
            'adapter.num_experts is 4; it must be 3, the number of LoRAs in training.start_from.',
        ),
        (
            {'training__start_from': 'a,b,c,d', 'adapter__experts_per_layer': (2, 4)},
            'adapter.experts_per_layer is (2, 4); it must be () if training.start_from names '
            'several LoRAs, each of which adapts all layers.',
        ),
        (
            {'training__router_start': 'arow'},
            "Unknown training.router_start 'arow': did you mean arrow?",
        ),
        (
            {'training__router_start': 'arrow', 'adapter__scores': 'absolute'},
            "training.router_start is 'arrow'; it must be 'random' unless training.start_from "
            "names several LoRAs and adapter.scores is 'absolute': the sign of a direction is "
            'arbitrary.',
        ),
        (
            {'training__router_start': 'arrow', 'training__start_from': 'a,b,c,d'},
            "training.router_start is 'arrow'; it must be 'random' unless training.start_from "
            "names several LoRAs and adapter.scores is 'absolute'",
        ),
        *(
            (
                {'training__router_start': 'tasks'} | changes,
                "training.router_start is 'tasks'; it must be 'random' unless training.start_from "
                'names a LoRA for each task that is trained on, in the same order, and '
                "adapter.scores is 'softmax'.",
            )
            for changes in (
                {},
                {'training__start_from': 'a,b,c,d'},
                {
                    'training__start_from': 'a,b',
                    'adapter__num_experts': 2,
                    'adapter__scores': 'absolute',
                },
            )
        ),
        (
            {'adapter__frozen': ('down', 'up')},
            "adapter.frozen is ('down', 'up'); it must be without 'up', which starts at zero "
            'unless training.start_from names trained adapters.',
        ),
    ],
)
def test_settings_that_do_not_fit_several_loras(base, changes, expected):
    with pytest.raises(UserError) as caught:
        run_config(toy_run_config(base[1], 'molora', **changes))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize('name', ['lora', 'malora', 'hydralora', 'd2mora', 'dora', 'goat'])
def test_methods_without_separate_projections_are_refused(base, name):
    settings = toy_run_config(base[1], 'lora', training__start_from='a,b')
    settings['adapter'] = dataclasses.asdict(settings_of(small_method(name)))
    with pytest.raises(UserError) as caught:
        run_config(settings)
    assert str(caught.value) == (
        'training.start_from names 2 LoRAs; they become the experts of a mixture with separate '
        "down- and up-projections: choose 'molora' or a method of its structure, with "
        'adapter.num_experts=2.'
    )


@pytest.mark.parametrize(
    ('source', 'changes', 'expected'),
    [
        ('lora', {'rank': 4}, '{} holds a LoRA of rank 8; adapter.rank must be at least that, not'),
        ('lora', {'targets': ('q',)}, '{} adapts down, gate, k, q, up, v; adapter.targets must be'),
        ('dora', {}, '{} does not hold a LoRA; each of several directories must hold one'),
        ('molora', {}, '{} does not hold a LoRA; each of several directories must hold one'),
    ],
)
def test_loras_that_do_not_fit_are_refused(base, loras, tmp_path, source, changes, expected):
    other = tmp_path / 'other'
    write_adapter(restored_model(source, *base), other)
    model = tiny_model(small_method('molora', **EXPERTS | changes))
    mixed = {'other': (None, other)} | {name: loras[name] for name in ('stable', 'peft')}
    with pytest.raises(UserError) as caught:
        started(model, base, mixed)
    assert str(caught.value).startswith('training.start_from: ' + expected.format(other))
