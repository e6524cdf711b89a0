"""Each method's update and gradients against its equation in float64 numpy, with nonzero B."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax import errors
from malora_jax.adapters import (
    METHODS,
    AdapterConfig,
    AdapterSettings,
    LowRankExperts,
    dispatch,
    method,
)
from malora_jax.adapters.low_rank import project_input
from malora_jax.adapters.settings import SUBSPACES, replace_settings, with_tasks
from tests.helpers import reference
from tests.helpers.reference_decoder import routing_margin

pytestmark = pytest.mark.usefixtures('compile_quickly')

INPUTS, OUTPUTS, TOKENS = 72, 40, 14

SMALL = {
    'lora': dict(rank=5),
    'dora': dict(rank=5),
    'asylora': dict(rank=7),
    'molora': dict(rank=3),
    'moasylora': dict(rank=5),
    'malora': dict(rank=4, shared_rank=10),
    'malora_small': dict(rank=3, shared_rank=6),
    'molora_r12': dict(rank=4),
    'molora_same_down': dict(rank=4),
    'malora_fixed_shared': dict(rank=5, shared_rank=10),
    'malora_symmetric': dict(rank=3, shared_rank=20),
    'malora_unshared': dict(rank=4, shared_rank=24),
    'malora_fixed_core': dict(rank=4, shared_rank=10),
    'malora_shared_up': dict(rank=4, shared_rank=10),
    'molora_dispatch': dict(rank=3),
    'malora_dispatch': dict(rank=4, shared_rank=10),
    'hydralora': dict(rank=4, shared_rank=4),
    'hydralora_top2': dict(rank=4, shared_rank=4),
    'alora': dict(rank=4, shared_rank=4),
    'adamole': dict(rank=3),
    'smora': dict(num_experts=12, shared_rank=12, top_k=5),
    'flylora': dict(num_experts=12, shared_rank=12, top_k=5),
    'align_lora': dict(rank=5),
    'remix': dict(rank=3),
    'mtl_lora': dict(rank=4, shared_rank=4, tasks=('a', 'b', 'c'), task_temperature=0.7),
    'moslora': dict(rank=6, shared_rank=6),
    'comol': dict(rank=6, shared_rank=6),
    'd2mora': dict(rank=4, num_up_experts=5),
    'goat': dict(rank=3),
    'mlora_heads': dict(rank=4, shared_rank=4),
}
# Options that the paper does not have: name, the method that the option changes, the change.
OPTIONS = {
    'renormalized': ('malora', dict(renormalize=True)),
    'equal_gates': ('malora', dict(equal_gates=True)),
    'rank_stabilized': ('lora', dict(rank_stabilized=True)),
    'one_of_eight': ('molora', dict(top_k=1)),
    'sparse_heads': ('hydralora', dict(top_k=3)),
    'sparse_two_routers': ('d2mora', dict(num_experts=6, top_k=2)),
    'renormalized_dispatch': ('malora_dispatch', dict(renormalize=True)),
    'balance_bias': ('malora', dict(bias_rate=0.1)),
    'balance_bias_dispatch': ('molora_dispatch', dict(bias_rate=0.1)),
    'gates_sum_to_k': ('malora', dict(renormalize=True, gates_sum_to_k=True)),
    'sigmoid': ('molora', dict(scores='sigmoid', renormalize=True)),
    'absolute': ('molora', dict(scores='absolute', renormalize=True)),
    'absolute_dispatch': ('molora_dispatch', dict(scores='absolute')),
    'sparse_threshold': ('adamole', dict(top_k=3)),
    'bias_in_gates': ('smora', dict(bias_in_gates=True)),
    'bias_in_softmax_gates': ('malora', dict(bias_rate=0.1, bias_in_gates=True)),
    'bias_in_gates_dispatch': ('molora_dispatch', dict(bias_rate=0.1, bias_in_gates=True)),
    'bias_in_magnitudes': (
        'flylora',
        dict(equal_gates=False, renormalize=True, bias_in_gates=True),
    ),
    'no_width_scale': ('goat', dict(width_scale=False)),
    'samples_and_residual': ('goat', dict(renormalize=False, equal_gates=True, samples=2)),
    'one_head': ('mlora_heads', dict(num_experts=1, top_k=1)),
}
CONFIGS = {name: method(name, **SMALL[name]) for name in METHODS} | {
    name: method(base, **SMALL[base], **change) for name, (base, change) in OPTIONS.items()
}


def collections_of(config: AdapterConfig, leaves):
    """Split the leaves into the module's collections of trained and frozen leaves."""
    collections = {'adapter': {}, 'adapter_frozen': {}}
    for name, leaf in leaves.items():
        collections[config.collection(name)][name] = leaf
    return collections


def random_leaves(experts: LowRankExperts, inputs: int, seed: int = 0):
    """Return random normal leaves, B included, scaled so that Δ is of order one."""
    made = nn.unbox(jax.eval_shape(experts.init, jax.random.key(0), jnp.zeros((1, inputs))))
    shapes = made['adapter'] | made.get('adapter_frozen', {})
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / _width(leaf) ** 0.5, jnp.float32),
        shapes,
    )


def _width(leaf) -> int:
    """Return the number of inputs of a matrix; 1 for a bias."""
    return leaf.shape[-2] if leaf.ndim > 1 else 1


def tokens_of(tokens: int, width: int, seed: int = 1) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(tokens, width)), jnp.float32)


def tasks_of(config: AdapterConfig, tokens: int = TOKENS) -> np.ndarray | None:
    """Return the task of each token, the last of which is padding; None without tasks."""
    T = len(config.tasks)
    return np.append(np.arange(tokens - 1) % T, -1) if T else None


def groups_of(config: AdapterConfig, tokens: int = TOKENS) -> jnp.ndarray | None:
    """Return the one-hot task of each token; None without tasks."""
    tasks = tasks_of(config, tokens)
    return None if tasks is None else jax.nn.one_hot(tasks, len(config.tasks))


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize('name', CONFIGS)
def test_update_equals_the_equation(name):
    config = CONFIGS[name]
    experts = LowRankExperts(config, OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS), tokens_of(TOKENS, INPUTS)
    assert {*leaves} == {*config.leaf_names} - {'magnitude'}
    variables = collections_of(config, leaves)
    inputs = x_ND, None, groups_of(config)
    found = jax.jit(experts.apply)(variables, *inputs)
    expected = reference.adapter_update(
        float64(x_ND), float64(leaves), config, tasks=tasks_of(config)
    )
    assert np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(experts.apply(variables, *inputs), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', METHODS)
def test_linears_with_one_input_are_what_each_is_alone(name):
    """Values and all gradients agree, also if dropout makes the input differ from the routers'."""
    experts, groups_NG = LowRankExperts(CONFIGS[name], OUTPUTS), groups_of(CONFIGS[name])
    leaves = [random_leaves(experts, INPUTS, seed) for seed in range(3)]
    both = tokens_of(TOKENS, INPUTS, seed=7), tokens_of(TOKENS, INPUTS, seed=8)
    weights_3NF = tokens_of(3 * TOKENS, OUTPUTS, seed=9).reshape(3, TOKENS, OUTPUTS)

    def alone(leaves, both):
        return [
            experts.apply(collections_of(CONFIGS[name], each), *both, groups_NG) for each in leaves
        ]

    def together(leaves, both):
        found = project_input(CONFIGS[name], *both, leaves)
        return [
            experts.apply({}, *each, groups_NG, method=experts.update)
            for each in zip(found, leaves, strict=True)
        ]

    def with_gradients(updates):
        def objective(*args):
            return (jnp.stack(updates(*args)) * weights_3NF).sum()

        return updates(leaves, both), jax.grad(objective, (0, 1))(leaves, both)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(
            jax.jit(lambda updates=updates: with_gradients(updates))()
            for updates in (alone, together)
        ),
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_gradients_equal_the_equations_central_differences(name):
    """Check gradients along random directions of every leaf and of x: step 1e-5, error 1e-4.

    The finite differences use float64 numpy. Frozen leaves are included, because they get gradients
    too; only the optimizer ignores them. The function would jump if the selected experts changed
    within a step. An assertion rules that out: every token has a gap between its K-th and its next
    probability.
    """
    config = CONFIGS[name]
    experts = LowRankExperts(config, OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS, seed=3), tokens_of(TOKENS, INPUTS, seed=4)
    weights_NF = tokens_of(TOKENS, OUTPUTS, seed=5)

    def objective(leaves, x_ND):
        inputs = x_ND, None, groups_of(config)
        return (experts.apply(collections_of(config, leaves), *inputs) * weights_NF).sum()

    gradients = float64(jax.jit(jax.grad(objective, argnums=(0, 1)))(leaves, x_ND))
    point = (float64(leaves), float64(x_ND))
    if config.has_router:
        choices = [reference.expert_scores(x, x, point[0], config)[2] for x in point[1]]
        assert routing_margin(np.stack(choices), config.router) > 1e-4

    def value(point):
        leaves, x_ND = point
        update_NF = reference.adapter_update(x_ND, leaves, config, tasks=tasks_of(config))
        return (update_NF * np.asarray(weights_NF)).sum()

    rng, step = np.random.default_rng(6), 1e-5
    paths = jax.tree_util.tree_leaves_with_path(gradients)
    assert len(paths) == len(leaves) + 1
    for path, gradient in paths:
        direction = rng.normal(size=gradient.shape)

        def moved(amount, path=path, direction=direction):
            return jax.tree_util.tree_map_with_path(
                lambda p, leaf: leaf + amount * direction if p == path else leaf, point
            )

        expected = (value(moved(step)) - value(moved(-step))) / (2 * step)
        is_constant = config.router.gates == 'equal' and 'router' in str(path)
        is_choice_only = 'balance_bias' in str(path) and not config.router.bias_in_gates
        if is_constant or is_choice_only:
            assert expected == 0
            assert not gradient.any()
            continue
        assert abs(expected) > 1e-2, path
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=2e-4, err_msg=path)


@settings(deadline=None, max_examples=30)
@given(
    experts=st.integers(1, 5),
    rank=st.integers(1, 4),
    extra=st.integers(0, 3),
    subspace=st.sampled_from(['', *SUBSPACES]),
    data=st.data(),
)
def test_update_equals_the_equation_for_any_shape(experts, rank, extra, subspace, data):
    is_routed = subspace not in ('tasks', 'summed_heads')
    top_k = data.draw(st.integers(1, experts)) if is_routed else experts
    has_router = is_routed and experts > 1
    renormalize = data.draw(st.booleans()) and top_k > 1 and has_router
    equal_gates = data.draw(st.booleans()) and not renormalize and has_router
    if subspace == 'ranks':
        rank = 1
    names = ('heads', 'tails', 'both', 'tasks', 'summed_heads')
    same_rank = dict.fromkeys(names, rank) | {'ranks': experts}
    shared_rank = ({'': 0, 'own': experts} | same_rank).get(subspace, rank + extra)
    config = AdapterSettings(
        num_experts=experts,
        top_k=top_k,
        rank=rank,
        alpha=3.0,
        shared_rank=shared_rank,
        subspace=subspace or 'down',
        num_up_experts=data.draw(st.sampled_from([0, 2, 5])) if experts > 1 > shared_rank else 0,
        rank_stabilized=data.draw(st.booleans()),
        renormalize=renormalize,
        equal_gates=equal_gates,
        # With equal gates for all experts, the router would get no gradient.
        frozen=('router',) if equal_gates and top_k == experts else (),
        tasks=('a', 'b') if subspace == 'tasks' else (),
    ).build()
    module = LowRankExperts(config, features=6)
    leaves, x_ND = random_leaves(module, 9), tokens_of(5, 9)
    expected = reference.adapter_update(
        float64(x_ND), float64(leaves), config, tasks=tasks_of(config, 5)
    )
    found = jax.jit(module.apply)(collections_of(config, leaves), x_ND, None, groups_of(config, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('top_k', [1, 2])
def test_one_expert_and_one_left_of_several_are_the_same(top_k):
    """With equal gates, K identical experts equal a single one."""
    alone = method('lora', rank=3)
    several = method('molora', rank=3, top_k=top_k, equal_gates=True)
    leaves, x_ND = random_leaves(LowRankExperts(alone, 6), 9), tokens_of(5, 9)
    twins = {name: jnp.repeat(leaf, 8, axis=0) for name, leaf in leaves.items()}
    twins['router'] = tokens_of(9, 8)
    np.testing.assert_allclose(
        LowRankExperts(several, 6).apply({'adapter': twins}, x_ND),
        LowRankExperts(alone, 6).apply({'adapter': leaves}, x_ND),
        rtol=1e-5,
        atol=1e-5,
    )


def test_leading_axes_are_tokens():
    experts = LowRankExperts(method('malora', **SMALL['malora']), OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS), tokens_of(12, INPUTS)
    flat = experts.apply({'adapter': leaves}, x_ND)
    cube = experts.apply({'adapter': leaves}, x_ND.reshape(3, 4, INPUTS))
    np.testing.assert_array_equal(cube.reshape(12, OUTPUTS), flat)


def test_router_sees_the_input_without_dropout():
    config = method('malora', **SMALL['malora'])
    experts = LowRankExperts(config, OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS), tokens_of(TOKENS, INPUTS)
    dropped_ND = x_ND * (tokens_of(TOKENS, INPUTS, seed=9) > 0)
    found = experts.apply({'adapter': leaves}, x_ND, dropped_ND)
    expected = reference.adapter_update(float64(x_ND), float64(leaves), config, float64(dropped_ND))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, experts.apply({'adapter': leaves}, dropped_ND), atol=1e-2)


@pytest.mark.parametrize('name', ['molora', 'malora'])
def test_dispatch_equals_rank_space_over_many_tiles(name):
    """Values and gradients agree with several tiles per expert, an idle and a busy expert."""
    config = method(name, **SMALL[name])
    experts, dispatched = (
        LowRankExperts(c, OUTPUTS)
        for c in (config, replace_settings(config, top_k=2, dispatch=True))
    )
    leaves, x_ND = random_leaves(experts, INPUTS), tokens_of(700, INPUTS) + 0.5
    router_DE = leaves['router']
    leaves['router'] = router_DE.at[:, 3].set(-1.0).at[:, 5].set(jnp.abs(router_DE[:, 5]))
    selected = experts.apply({'adapter': leaves}, x_ND, None, jnp.ones((700, 1)), mutable='routing')
    load_E = selected[1]['routing']['sums'].load[0]
    assert load_E[3] == 0 and load_E[5] > 500

    def value_and_gradients(module):
        def objective(leaves, x_ND):
            out_NF = module.apply({'adapter': leaves}, x_ND)
            return (out_NF * tokens_of(700, OUTPUTS, seed=5)).sum(), out_NF

        found, out_NF = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(leaves, x_ND)
        return {'out': out_NF, 'x': found[1]} | found[0]

    ours, right = value_and_gradients(dispatched), value_and_gradients(experts)
    for key, expected in right.items():
        scale = np.abs(expected).max()
        assert scale > 0.1, key
        np.testing.assert_allclose(ours[key], expected, rtol=1e-4, atol=1e-5 * scale, err_msg=key)


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(1, 400), num_experts=st.integers(2, 9), data=st.data())
def test_every_slot_has_a_place_of_its_own_in_a_tile_of_its_expert(tokens, num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # The experts differ widely in popularity.
    ranked_NE = np.argsort(rng.normal(size=(tokens, num_experts)) - np.arange(num_experts), axis=1)
    chosen_NK = np.sort(ranked_NE[:, :top_k], axis=1)
    selected_NE = np.zeros((tokens, num_experts), np.float32)
    np.put_along_axis(selected_NE, chosen_NK, 1, axis=1)
    slots, expert_NK = jax.jit(dispatch.sort_by_expert, static_argnums=1)(selected_NE, top_k)
    np.testing.assert_array_equal(expert_NK, chosen_NK)
    places = np.asarray(slots.position)
    assert len(np.unique(places)) == tokens * top_k
    np.testing.assert_array_equal(slots.token[places], np.arange(tokens)[:, None] + 0 * places)
    assert (np.asarray(slots.token) == tokens).sum() == len(slots.token) - tokens * top_k
    np.testing.assert_array_equal(slots.expert[places // dispatch._TILE], chosen_NK)


_ROUTER = {'router': (INPUTS, 8)}
# Methods at the paper's sizes; GOAT needs a singular direction for each rank of 8 experts.
PAPER_SIZES = {name: with_tasks(method(name), ('a', 'b')) for name in METHODS}
PAPER_SIZES['goat'] = method('goat', rank=5)
# Trained and frozen leaves, with their shapes, of these methods.
SHAPES = {
    'lora': ({'down': (1, INPUTS, 64), 'up': (1, 64, OUTPUTS)}, {}),
    'dora': ({'down': (1, INPUTS, 64), 'up': (1, 64, OUTPUTS)}, {}),
    'asylora': ({'up': (1, 128, OUTPUTS)}, {'down': (1, INPUTS, 128)}),
    'molora': (_ROUTER | {'down': (8, INPUTS, 8), 'up': (8, 8, OUTPUTS)}, {}),
    'moasylora': (_ROUTER | {'up': (8, 16, OUTPUTS)}, {'down': (8, INPUTS, 16)}),
    'malora': (
        _ROUTER | {'shared_down': (INPUTS, 32), 'core': (8, 32, 12), 'up': (8, 12, OUTPUTS)},
        {},
    ),
    'molora_dispatch': (_ROUTER | {'down': (8, INPUTS, 8), 'up': (8, 8, OUTPUTS)}, {}),
    'malora_dispatch': (
        _ROUTER | {'shared_down': (INPUTS, 32), 'core': (8, 32, 12), 'up': (8, 12, OUTPUTS)},
        {},
    ),
    'malora_small': (
        _ROUTER | {'shared_down': (INPUTS, 22), 'core': (8, 22, 8), 'up': (8, 8, OUTPUTS)},
        {},
    ),
    'molora_r12': (_ROUTER | {'down': (8, INPUTS, 12), 'up': (8, 12, OUTPUTS)}, {}),
    'molora_same_down': (_ROUTER | {'down': (8, INPUTS, 12), 'up': (8, 12, OUTPUTS)}, {}),
    'malora_fixed_shared': (
        _ROUTER | {'core': (8, 32, 16), 'up': (8, 16, OUTPUTS)},
        {'shared_down': (INPUTS, 32)},
    ),
    'malora_symmetric': (
        _ROUTER | {'shared_down': (INPUTS, 64), 'core': (8, 64, 8), 'up': (8, 8, OUTPUTS)},
        {},
    ),
    'malora_unshared': (
        _ROUTER | {'down': (8, INPUTS, 4), 'core': (8, 4, 12), 'up': (8, 12, OUTPUTS)},
        {},
    ),
    'malora_fixed_core': (
        _ROUTER | {'shared_down': (INPUTS, 32), 'up': (8, 12, OUTPUTS)},
        {'core': (8, 32, 12)},
    ),
    'malora_shared_up': (
        _ROUTER | {'down': (8, INPUTS, 12), 'core': (8, 12, 32), 'shared_up': (32, OUTPUTS)},
        {},
    ),
    'hydralora': (_ROUTER | {'shared_down': (INPUTS, 12), 'up': (8, 12, OUTPUTS)}, {}),
    'hydralora_top2': (_ROUTER | {'shared_down': (INPUTS, 12), 'up': (8, 12, OUTPUTS)}, {}),
    'alora': (_ROUTER | {'down': (8, INPUTS, 16), 'shared_up': (16, OUTPUTS)}, {}),
    'adamole': (
        _ROUTER
        | {'threshold': (INPUTS, 1), 'threshold_bias': (1,)}
        | {'down': (8, INPUTS, 8), 'up': (8, 8, OUTPUTS)},
        {},
    ),
    'smora': (
        {'router': (INPUTS, 44), 'shared_down': (INPUTS, 44), 'shared_up': (44, OUTPUTS)},
        {'balance_bias': (44,)},
    ),
    'flylora': (
        {'shared_up': (128, OUTPUTS)},
        {'shared_down': (INPUTS, 128), 'balance_bias': (128,)},
    ),
    'align_lora': ({'down': (1, INPUTS, 64), 'up': (1, 64, OUTPUTS)}, {}),
    'remix': (_ROUTER | {'down': (8, INPUTS, 8), 'up': (8, 8, OUTPUTS)}, {}),
    'mtl_lora': (
        {
            'shared_down': (INPUTS, 30),
            'core': (2, 30, 30),
            'up': (3, 30, OUTPUTS),
            'task_weights': (2, 3),
        },
        {},
    ),
    'moslora': (
        {'shared_down': (INPUTS, 64), 'core': (1, 64, 64), 'shared_up': (64, OUTPUTS)},
        {},
    ),
    'comol': (
        {
            'router': (64, 8),
            'shared_down': (INPUTS, 64),
            'core': (8, 64, 64),
            'shared_up': (64, OUTPUTS),
        },
        {},
    ),
    'd2mora': (
        {
            'router': (INPUTS, 3),
            'down': (3, INPUTS, 12),
            'up_router': (12, 8),
            'up': (8, 12, OUTPUTS),
        },
        {},
    ),
    'goat': (
        _ROUTER | {'down': (8, INPUTS, 5), 'up': (8, 5, OUTPUTS)},
        {'residual_down': (8, INPUTS, 5), 'residual_up': (8, 5, OUTPUTS)},
    ),
    'mlora_heads': (
        {'shared_down': (INPUTS, 20), 'up': (5, 20, OUTPUTS)},
        {'residual_down': (INPUTS, 20), 'residual_up': (20, OUTPUTS)},
    ),
}


@pytest.mark.parametrize('name', METHODS)
def test_leaves_and_shapes_are_the_contract(name):
    trained, frozen = SHAPES[name]
    experts = LowRankExperts(PAPER_SIZES[name], OUTPUTS)
    update, variables = experts.init_with_output(jax.random.key(0), jnp.ones((2, INPUTS)))
    found = {
        collection: {key: leaf.shape for key, leaf in leaves.items()}
        for collection, leaves in nn.unbox(variables).items()
    }
    assert found.pop('adapter') == trained
    assert found == ({'adapter_frozen': frozen} if frozen else {})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert not np.any(update), 'nothing is changed before training'
    # M-LoRA starts from random heads, which its residual subtracts.
    zero = method(name).structure.factors[-1] if name != 'mlora_heads' else ''
    for leaf, values in (nn.unbox(variables)['adapter']).items():
        assert np.any(values) == (leaf != zero), leaf


@pytest.mark.parametrize('name', [name for name in METHODS if method(name).has_router])
def test_experts_start_different_and_seeds_matter(name):
    experts, structure = LowRankExperts(PAPER_SIZES[name], OUTPUTS), method(name).structure
    first, second = (
        nn.unbox(experts.init(jax.random.key(seed), jnp.ones((1, INPUTS)))) for seed in (0, 1)
    )
    num_experts = method(name).num_experts
    distinct = 1 if name == 'molora_same_down' else num_experts
    for collection in first:
        for leaf, values in first[collection].items():
            if leaf in ('down', 'core'):
                assert len(np.unique(values.reshape(num_experts, -1), axis=0)) == distinct, leaf
            # A residual needs the kernel, and is zero without one.
            if leaf not in (structure.factors[-1], *structure.frozen, 'balance_bias'):
                assert not np.allclose(values, second[collection][leaf]), leaf


@pytest.mark.parametrize('name', ['malora', 'malora_unshared', 'malora_shared_up'])
def test_identical_start_gives_every_expert_one_matrix(name):
    experts = LowRankExperts(method(name, identical_start=True), OUTPUTS)
    leaves = nn.unbox(experts.init(jax.random.key(0), jnp.ones((1, INPUTS))))['adapter']
    for leaf in {'down', 'core'} & {*leaves}:
        assert len(np.unique(leaves[leaf].reshape(8, -1), axis=0)) == 1, leaf


def test_shared_subspace_wider_than_the_input_is_refused():
    experts = LowRankExperts(method('malora'), OUTPUTS)
    with pytest.raises(errors.UserError, match=r'shared_rank is 32; it must be at most 20'):
        experts.init(jax.random.key(0), jnp.ones((1, 20)))


def test_bfloat16_activations_stay_close_to_float32():
    """Router and leaves stay float32; the bound is the relative error of bfloat16 products."""
    config = method('malora', **SMALL['malora'])
    experts = LowRankExperts(config, OUTPUTS)
    leaves = random_leaves(experts, INPUTS)
    x_ND = tokens_of(TOKENS, INPUTS).astype(jnp.bfloat16)
    found = experts.apply({'adapter': leaves}, x_ND)
    assert found.dtype == jnp.bfloat16
    exact = experts.apply({'adapter': leaves}, x_ND.astype(jnp.float32))
    error = np.abs(np.asarray(found, np.float32) - exact)
    assert error.max() < 0.03 * np.abs(exact).max()
