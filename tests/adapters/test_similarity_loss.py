"""The similarity loss between the flattened matrices of experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters.similarity_loss import similarity_loss, sum_of_cosines
from tests.helpers import reference
from tests.helpers.models import random_variables, small_method, tiny_model


def matrices(seed: int = 0, layers: int = 3, experts: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, experts, 7, 5))


def loss_of(matrices_LEIR) -> jax.Array:
    counts_L = np.full(len(matrices_LEIR), matrices_LEIR.shape[1])
    return sum_of_cosines(jnp.asarray(matrices_LEIR, jnp.float32), counts_L)


@pytest.mark.parametrize('name', ['d2mora', 'malora', 'molora', 'comol', 'hydralora', 'moasylora'])
def test_the_loss_is_the_sum_over_all_linears_and_layers(name):
    """Only trained matrices of which each expert has its own count."""
    adapter = small_method(name)
    trained = random_variables(tiny_model(adapter))['adapter']
    expected = 0.0
    for part in trained['layers'].values():
        for leaves in part.values():
            for layer in range(2):
                own = {key: np.asarray(leaf[layer], np.float64) for key, leaf in leaves.items()}
                expected += reference.similarity_loss(own, adapter)
    assert expected > 1
    np.testing.assert_allclose(similarity_loss(adapter, trained), expected, rtol=1e-5)


def test_experts_that_a_layer_lacks_do_not_count():
    adapter = small_method('molora', experts_per_layer=(2, 4))
    trained = random_variables(tiny_model(adapter))['adapter']
    gradients = jax.grad(similarity_loss, argnums=1)(adapter, trained)
    for part in gradients['layers'].values():
        for leaves in part.values():
            for leaf in (leaves['down'], leaves['up']):
                assert not np.any(leaf[0, 2:])
                assert np.abs(leaf[0, :2]).max() > 0 and np.abs(leaf[1, 2:]).max() > 0


def test_sizes_do_not_matter_but_directions_do():
    one = matrices()[:1]
    larger = one * np.array([1e-3, 1, 5, 1e3])[None, :, None, None]
    np.testing.assert_allclose(loss_of(larger), loss_of(one), rtol=1e-5)
    np.testing.assert_allclose(loss_of(one[:, [0, 0, 0]]), 3, rtol=1e-6)
    np.testing.assert_allclose(loss_of(np.concatenate([one[:, :1], -one[:, :1]], axis=1)), 1, 1e-6)
    basis = np.eye(35).reshape(1, 35, 7, 5)
    assert loss_of(basis) == 0


@pytest.mark.parametrize('zeros', [[0], [1, 3], [0, 1, 2, 3]])
def test_a_matrix_of_zeros_is_similar_to_none_and_gets_no_gradient(zeros):
    some = matrices()
    some[:, zeros] = 0
    loss, gradient_LEIR = jax.value_and_grad(loss_of)(jnp.asarray(some, jnp.float32))
    others = np.delete(some, zeros, axis=1)
    np.testing.assert_allclose(loss, loss_of(others), rtol=1e-5)
    assert np.all(np.isfinite(gradient_LEIR))
    assert not np.any(gradient_LEIR[:, zeros])


def test_descent_makes_the_experts_orthogonal():
    some = jnp.asarray(matrices(), jnp.float32)
    before = loss_of(some)
    gradient_of = jax.jit(jax.grad(loss_of))
    for _ in range(200):
        some -= 0.1 * gradient_of(some)
    assert loss_of(some) < 0.2 * before
