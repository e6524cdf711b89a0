"""Joint training steps of several runs, compared with the steps of each run alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters import trees
from malora_jax.adapters.settings import settings_of
from malora_jax.sweeps import joint
from malora_jax.sweeps.joint import initial_state
from malora_jax.sweeps.joint_groups import joint_groups, with_largest_ranks
from malora_jax.sweeps.padding import pad_and_stack, take, unpad
from malora_jax.training import run_config
from malora_jax.training.hyperparameters import CONFIG_FIELDS, Hyperparameters
from malora_jax.training.setup import build_setup
from malora_jax.training.step import lower_train_step
from tests.helpers.runs import toy_run_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly', 'smooth_adam')]
STEPS = 3
# Values of each of three runs.
DIFFERENT = {
    'seed': (0, 5, 0),
    'optimizer__learning_rate': (1e-2, 3e-3, 1e-3),
    'optimizer__weight_decay': (0.01, 0.1, 0.0),
    'optimizer__clip_norm': (1.0, 0.1, 1e3),
    'optimizer__router_rate': (1.0, 2.0, 0.5),
    'optimizer__down_rate': (1.0, 3.0, 1.0),
    'optimizer__core_rate': (1.0, 1.0, 2.0),
    'optimizer__up_rate': (4.0, 1.0, 16.0),
    'optimizer__magnitude_rate': (1.0, 2.0, 3.0),
    'adapter__alpha': (8.0, 4.0, 3.0),
    'adapter__beta': (1.0, 0.5, 2.0),
    'adapter__dropout': (0.1, 0.2, 0.3),
    'adapter__balance_weight': (0.01, 0.1, 0.5),
}

# Dropout masks of published code.
MASKS = {
    'malora_unshared': {'adapter__dropout_masks': 'expert'},
    'comol': {'adapter__core_dropout': 0.2},
}


def settings(weights, method, **changes):
    """Return configs of three runs that differ in everything that may differ."""
    if method == 'dora':
        changes |= {'adapter__num_experts': 1}
    if method in ('mtl_lora', 'mlora_heads', 'comol'):
        changes |= {'adapter__top_k': 4}
    changes |= MASKS.get(method, {})
    return [
        toy_run_config(weights, method, **changes, **dict(zip(DIFFERENT, values, strict=True)))
        for values in zip(*DIFFERENT.values(), strict=True)
    ]


# Ranks of an expert and of the subspace.
MOLORA_RANKS = ({'rank': 3}, {'rank': 4}, {'rank': 1})
MALORA_RANKS = (
    {'rank': 3, 'shared_rank': 8},
    {'rank': 5, 'shared_rank': 6},
    {'rank': 2, 'shared_rank': 4},
)
OWN_RANKS = (
    {'rank': 3, 'shared_rank': 8},
    {'rank': 5, 'shared_rank': 12},
    {'rank': 2, 'shared_rank': 4},
)
MTL_LORA_RANKS = tuple({'rank': rank, 'shared_rank': rank} for rank in (3, 5, 2))


@pytest.mark.parametrize(
    'method, ranks',
    [
        *(('lora', ()), ('dora', ()), ('malora', ()), ('goat', ())),
        *(('molora', MOLORA_RANKS), ('malora', MALORA_RANKS), ('mtl_lora', MTL_LORA_RANKS)),
        *(('d2mora', MOLORA_RANKS), ('mlora_heads', MTL_LORA_RANKS)),
        *(('malora_unshared', OWN_RANKS), ('comol', MTL_LORA_RANKS)),
    ],
    ids=[
        *('lora', 'dora', 'malora', 'goat'),
        *('molora of three ranks', 'malora of three ranks', 'mtl_lora of three ranks'),
        *('d2mora of three ranks', 'mlora_heads of three ranks'),
        *('masks of experts of three ranks', 'masks of cores of three ranks'),
    ],
)
def test_each_run_is_as_it_would_be_alone(method, ranks, tiny_weights):
    """Adapters are random, because with B = 0 half of the gradients would be zero.

    Each step starts from equal states. If rounding had made them drift apart, a choice between two
    nearly equal experts could change, which no tolerance covers.
    """
    configs = settings(tiny_weights, method)
    for config, changes in zip(configs, ranks, strict=False):
        config['adapter'] |= changes
    runs = [run_config(config) for config in configs]
    base = build_setup(runs[0]).base
    setups = [build_setup(run, base) for run in runs]
    first, params = setups[0], base.params
    states = [_random(setup.fresh_state(), 10 + seed) for seed, setup in enumerate(setups)]
    alone = [
        lower_train_step(s.run, s.steps, 2, state, params, s.hyperparameters).compile()
        for s, state in zip(setups, states, strict=True)
    ]
    numbers, run = pad_and_stack([s.hyperparameters for s in setups]), with_largest_ranks(runs)
    together = lower_train_step(
        run, first.steps, 2, pad_and_stack(states), params, numbers
    ).compile()
    data = [setup.train_iterator() for setup in setups]
    for _ in range(STEPS):
        stacked = pad_and_stack(states)
        batches = [next(rows) for rows in data]
        rows = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        stacked, metrics = together(stacked, params, rows, numbers)
        for index, batch in enumerate(batches):
            numbers_alone = setups[index].hyperparameters
            states[index], expected = alone[index](states[index], params, batch, numbers_alone)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    np.asarray(metrics[name])[index], value, rtol=2e-5, err_msg=name
                )
        for index, state in enumerate(states):
            _assert_close(unpad(take(stacked, index), state), state)
    # They are not the same by accident.
    finals = [np.asarray(jax.tree.leaves(state.adapter)[-1]) for state in states]
    assert finals[0].shape != finals[2].shape or np.abs(finals[0] - finals[2]).max() > 1e-3
    # The padding is still zero.
    for leaf, whole_leaf in zip(
        jax.tree.leaves(unpad(take(stacked, 0), states[0])),
        jax.tree.leaves(take(stacked, 0)),
        strict=True,
    ):
        assert np.count_nonzero(leaf) == np.count_nonzero(whole_leaf)


def _random(state, seed):
    rng = np.random.default_rng(seed)
    return state.replace(
        adapter=jax.tree.map(
            lambda leaf: leaf + jnp.asarray(0.05 * rng.standard_normal(leaf.shape), leaf.dtype),
            state.adapter,
        )
    )


def _assert_close(found, expected):
    """Compare moments up to 1e-4 of each leaf's largest entry, and adapters up to 1e-3.

    Adam divides by roots of moments, some of which are little more than rounding errors.
    """
    leaves = zip(trees.named_leaves(found), trees.named_leaves(expected), strict=True)
    for (name, a), (_, b) in leaves:
        scale = max(np.abs(b).max(), 1e-12) * (1e-3 if 'adapter' in name else 1e-4)
        np.testing.assert_allclose(a, b, rtol=0, atol=scale, err_msg=name)


def test_the_activations_keep_their_dtype(tiny_weights):
    """The scale and the dropout rate are float32, and must not promote the activations."""
    runs = [
        run_config(config) for config in settings(tiny_weights, 'malora', model__dtype='bfloat16')
    ]
    setup = build_setup(runs[0])
    base, numbers = setup.base.params, setup.hyperparameters
    states = pad_and_stack([setup.fresh_state()] * 3)
    step = lower_train_step(runs[0], setup.steps, 2, states, base, pad_and_stack([numbers] * 3))
    alone = lower_train_step(runs[0], setup.steps, 2, setup.fresh_state(), base, numbers)
    counts = [_products_in_float32(lowered.as_text()) for lowered in (step, alone)]
    assert counts[0] == counts[1] > 0


def _products_in_float32(text: str) -> int:
    lines = [line for line in text.splitlines() if 'dot_general' in line]
    return sum('bf16' not in line.split(':', 1)[1] for line in lines)


@pytest.mark.parametrize('method', ['malora', 'molora'])
def test_starts_are_those_of_the_runs_alone(method, tiny_weights):
    runs = [run_config(config) for config in settings(tiny_weights, method)]
    base = build_setup(runs[0]).base
    for run in runs:
        setup = build_setup(run, base)
        found, expected = initial_state(runs[0], setup), setup.fresh_state()
        for (name, a), (_, b) in zip(
            trees.named_leaves(found), trees.named_leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


def test_initial_states_compile_once_for_each_rank_and_beta(tiny_weights):
    runs = [run_config(config) for config in settings(tiny_weights, 'molora')]
    runs.append(dataclasses.replace(runs[2], seed=4))
    base = build_setup(runs[0]).base
    joint.create_state_jit.clear_cache()
    for run in runs:
        initial_state(runs[0], build_setup(run, base))
    # There are three values of beta.
    assert joint.create_state_jit._cache_size() == 3


def test_groups_of_runs_that_train_jointly(tiny_weights):
    one, two, three = settings(tiny_weights, 'malora')
    other = toy_run_config(tiny_weights, 'malora', adapter__rank=2)
    longer = toy_run_config(tiny_weights, 'malora', training__steps=7)
    plain = toy_run_config(tiny_weights, 'molora')
    plain['method'] = 'malora'  # Only its settings count, not its name.
    found = joint_groups({'a': one, 'b': plain, 'c': two, 'd': longer, 'e': three, 'f': other})
    assert found == [['a', 'c', 'e', 'f'], ['b'], ['d']]


@pytest.mark.parametrize('field', ['dropout', 'balance_weight'])
def test_whether_dropout_and_balance_loss_exist_is_the_same_in_a_group(field, tiny_weights):
    configs = {
        str(value): toy_run_config(tiny_weights, 'malora', **{f'adapter__{field}': value})
        for value in (0.1, 0.0, 0.2)
    }
    assert joint_groups(configs) == [['0.1', '0.2'], ['0.0']]


def test_runs_of_goat_with_different_ranks_are_not_a_group(tiny_weights):
    """Besides the scale, the factor of GOAT's update depends on the rank."""
    configs = {
        name: toy_run_config(tiny_weights, 'goat', adapter__rank=rank, seed=seed)
        for seed, (name, rank) in enumerate([('a', 4), ('b', 2), ('c', 4)])
    }
    assert joint_groups(configs) == [['a', 'c'], ['b']]


@pytest.mark.parametrize(
    ('name', 'field', 'values'),
    [
        ('smora', 'bias_in_gates', (False, True)),
        ('flylora', 'bias_target', ('mean', 'share')),
        ('adamole', 'balance_scores', ('probability', 'distance')),
        ('goat', 'width_scale', (True, False)),
        ('molora', 'dropout_masks', ('shared', 'expert')),
        ('smora', 'router_dropout', (False, True)),
    ],
)
def test_forms_of_published_code_are_the_same_in_a_group(name, field, values, tiny_weights):
    configs = {
        f'{value} {seed}': toy_run_config(
            tiny_weights, name, seed=seed, **{f'adapter__{field}': value}
        )
        for seed in (1, 2)
        for value in values
    }
    first, second = values
    expected = [[f'{first} 1', f'{first} 2'], [f'{second} 1', f'{second} 2']]
    assert joint_groups(configs) == expected


def test_the_largest_ranks_with_the_scale_of_each_run(tiny_weights):
    """The scales α / r are 16 / 4 and 12 / 2, independent of other runs' ranks."""
    runs = [
        run_config(toy_run_config(tiny_weights, adapter__rank=rank, adapter__alpha=alpha))
        for rank, alpha in ((4, 16.0), (2, 12.0))
    ]
    assert [build_setup(run).hyperparameters.scale for run in runs] == [4.0, 6.0]
    assert with_largest_ranks(runs[::-1]).adapter.structure.rank == 4
    stabilized = run_config(
        toy_run_config(tiny_weights, adapter__rank=4, adapter__rank_stabilized=True)
    )
    assert build_setup(stabilized).hyperparameters.scale == stabilized.adapter.alpha / 2


def test_hyperparameters_are_the_numbers_of_the_config(tiny_weights):
    run = run_config(settings(tiny_weights, 'malora')[1])
    found = Hyperparameters.from_configs(run.seed, run.optimizer, run.adapter)
    assert (found.seed, found.seed.dtype) == (5, 'uint32')
    sections = {'optimizer': run.optimizer, 'adapter': settings_of(run.adapter)}
    for name in CONFIG_FIELDS[1:]:
        section, _, field = name.partition('.')
        value = getattr(sections[section], field)
        number = getattr(found, 'scale' if field == 'alpha' else field)
        if field == 'alpha':
            number *= run.adapter.structure.rank
        assert (number, number.dtype) == (np.float32(value), 'float32'), name
    assert len(CONFIG_FIELDS) == len(jax.tree.leaves(found))
