"""Each method's update and gradients against its equation in float64 numpy, with B non-zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax import errors
from malora_jax.adapters import METHODS, AdapterConfig, LowRankExperts, method

INPUTS, OUTPUTS, TOKENS = 48, 40, 14

SMALL = {
    'lora': dict(rank=5),
    'molora': dict(rank=3),
    'malora': dict(rank=4, shared_rank=10),
    'malora_small': dict(rank=3, shared_rank=6),
}


def random_leaves(experts: LowRankExperts, inputs: int, seed: int = 0):
    """Every leaf, B too, replaced by normal values of a size that makes Δ of order one."""
    shapes = nn.unbox(experts.init(jax.random.key(0), jnp.zeros((1, inputs))))['adapter']
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, jnp.float32),
        shapes,
    )


def tokens_of(tokens: int, width: int, seed: int = 1) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(tokens, width)), jnp.float32)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize('name', METHODS)
def test_update_equals_the_equation(name):
    config = method(name, **SMALL[name])
    experts = LowRankExperts(config, OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS), tokens_of(TOKENS, INPUTS)
    found = jax.jit(experts.apply)({'adapter': leaves}, x_ND)
    expected = reference.update(float64(x_ND), float64(leaves), config)
    assert np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        experts.apply({'adapter': leaves}, x_ND), found, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('name', METHODS)
def test_gradients_equal_the_equations_central_differences(name):
    """Along random directions of every leaf and of x, in float64 numpy: step 1e-5, error 1e-4.

    A kept set that changes within the step would make the function jump: a gap between the K-th
    and the next probability of every token is asserted to rule it out.
    """
    config = method(name, **SMALL[name])
    experts = LowRankExperts(config, OUTPUTS)
    leaves, x_ND = random_leaves(experts, INPUTS, seed=3), tokens_of(TOKENS, INPUTS, seed=4)
    weights_NF = tokens_of(TOKENS, OUTPUTS, seed=5)

    def objective(leaves, x_ND):
        return (experts.apply({'adapter': leaves}, x_ND) * weights_NF).sum()

    gradients = float64(jax.jit(jax.grad(objective, argnums=(0, 1)))(leaves, x_ND))
    point = (float64(leaves), float64(x_ND))
    if config.has_router:
        for x in point[1]:
            ranked = np.sort(reference.softmax(point[0]['router'].T @ x))[::-1]
            assert ranked[config.top_k - 1] - ranked[config.top_k] > 1e-4

    def value(point):
        leaves, x_ND = point
        return (reference.update(x_ND, leaves, config) * np.asarray(weights_NF)).sum()

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
        assert abs(expected) > 1e-2, path
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=2e-4, err_msg=path)


@settings(deadline=None, max_examples=15)
@given(
    experts=st.integers(1, 5),
    rank=st.integers(1, 4),
    extra=st.integers(0, 3),
    shared=st.booleans(),
    data=st.data(),
)
def test_update_equals_the_equation_for_any_shape(experts, rank, extra, shared, data):
    top_k = data.draw(st.integers(1, experts))
    renormalize = data.draw(st.booleans()) and top_k > 1
    config = AdapterConfig(
        num_experts=experts,
        top_k=top_k,
        rank=rank,
        alpha=3.0,
        shared_rank=rank + extra if shared else 0,
        renormalize=renormalize,
    )
    module = LowRankExperts(config, features=6)
    leaves, x_ND = random_leaves(module, 9), tokens_of(5, 9)
    expected = reference.update(float64(x_ND), float64(leaves), config)
    found = module.apply({'adapter': leaves}, x_ND)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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
    exact = float64(leaves)
    expected = []
    for x, dropped in zip(float64(x_ND), float64(dropped_ND), strict=True):
        G = reference.gates(x, exact['router'].T, config.top_k)
        hidden = [exact['core'][t].T @ (exact['shared_down'].T @ dropped) for t in range(8)]
        expected.append(2 * sum(G[t] * (exact['up'][t].T @ hidden[t]) for t in range(8)))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'leaves'),
    [
        ('lora', {'down': (1, INPUTS, 64), 'up': (1, 64, OUTPUTS)}),
        ('molora', {'router': (INPUTS, 8), 'down': (8, INPUTS, 8), 'up': (8, 8, OUTPUTS)}),
        (
            'malora',
            {
                'router': (INPUTS, 8),
                'shared_down': (INPUTS, 32),
                'core': (8, 32, 12),
                'up': (8, 12, OUTPUTS),
            },
        ),
    ],
)
def test_leaves_and_shapes_are_the_contract(name, leaves):
    variables = LowRankExperts(method(name), OUTPUTS).init(jax.random.key(0), jnp.ones((2, INPUTS)))
    assert set(variables) == {'adapter'}
    found = {key: leaf.shape for key, leaf in nn.unbox(variables)['adapter'].items()}
    assert found == leaves
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert not np.any(nn.unbox(variables)['adapter']['up'])


def test_frozen_leaves_move_to_their_own_collection():
    config = method('malora', frozen=('shared_down',), **SMALL['malora'])
    variables = LowRankExperts(config, OUTPUTS).init(jax.random.key(0), jnp.ones((2, INPUTS)))
    assert set(variables['adapter']) == {'router', 'core', 'up'}
    assert set(variables['adapter_frozen']) == {'shared_down'}


def test_experts_start_different_and_seeds_matter():
    for name in ('molora', 'malora'):
        experts = LowRankExperts(method(name), OUTPUTS)
        first, second = (
            nn.unbox(experts.init(jax.random.key(seed), jnp.ones((1, INPUTS))))['adapter']
            for seed in (0, 1)
        )
        leaf = 'core' if name == 'malora' else 'down'
        flat = np.asarray(first[leaf]).reshape(8, -1)
        assert len(np.unique(flat, axis=0)) == 8
        assert not np.allclose(first[leaf], second[leaf])


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
