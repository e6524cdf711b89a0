"""Products of an input with narrow matrices, against float64 numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters import input_products

TOKENS, INPUTS = 24, 200
DOWN_RANKS, EXPERTS = (6, 6, 3), (8, 8, 4)


def drawn(dtype):
    """Return an input with outliers, as in language models, and random weights."""
    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((TOKENS, INPUTS))
    x_ND[:, 7] *= 50
    downs = [jnp.asarray(rng.standard_normal((INPUTS, rank)), jnp.float32) for rank in DOWN_RANKS]
    routers = [jnp.asarray(rng.standard_normal((INPUTS, each)), jnp.float32) for each in EXPERTS]
    return jnp.asarray(x_ND, dtype), downs, routers


def multiply(x_ND, downs, routers):
    down_products, logits = input_products.multiply_input(x_ND, downs, routers, 'rank')
    return down_products + logits


def float64(arrays):
    return [np.asarray(each, np.float64) for each in arrays]


@pytest.mark.parametrize(
    'product', [input_products._separate_products, input_products._joint_product]
)
def test_logits_are_exact_and_down_projections_rounded(product):
    """Accelerators use the joint product. An ordinary bfloat16 product has errors of 1e-2."""
    x_ND, (down_DQ, *_), (router_DE, *_) = drawn(jnp.bfloat16)
    projected_NQ, logits_NE = jax.jit(product)(x_ND, down_DQ, router_DE)
    assert (projected_NQ.dtype, logits_NE.dtype) == (jnp.bfloat16, jnp.float32)
    x64, router64, down64 = float64((x_ND, router_DE, down_DQ))
    scale = np.abs(x64) @ np.abs(router64)
    assert (np.abs(logits_NE - x64 @ router64) < 5e-7 * scale).all()
    rounded = np.abs(np.asarray(x_ND @ router_DE.astype(jnp.bfloat16), np.float64) - x64 @ router64)
    assert (rounded / scale).max() > 1e-4
    np.testing.assert_allclose(
        np.asarray(projected_NQ, np.float64), x64 @ down64, rtol=0.02, atol=0.02 * scale.max()
    )


@pytest.mark.parametrize('parts', ['both', 'downs', 'routers'])
def test_values_and_gradients_in_float32(parts):
    x_ND, downs, routers = drawn(jnp.float32)
    downs = [] if parts == 'routers' else downs
    routers = [] if parts == 'downs' else routers
    products, backward = jax.vjp(multiply, x_ND, downs, routers)
    x64, weights = float64([x_ND])[0], float64(downs + routers)
    assert len(products) == len(weights)
    for found, weight in zip(products, weights, strict=True):
        np.testing.assert_allclose(found, x64 @ weight, rtol=1e-5, atol=1e-4)
    rng = np.random.default_rng(1)
    cotangents = [jnp.asarray(rng.standard_normal(each.shape), jnp.float32) for each in products]
    x_gradient, *weight_gradients = backward(cotangents)
    expected = sum(
        gradient @ weight.T for gradient, weight in zip(float64(cotangents), weights, strict=True)
    )
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-4)
    for found, gradient in zip(
        itertools.chain(*weight_gradients), float64(cotangents), strict=True
    ):
        np.testing.assert_allclose(found, x64.T @ gradient, rtol=1e-5, atol=1e-4)


def test_gradients_in_bfloat16_have_the_precision_of_the_input():
    """Gradients of weights are float32 sums of products of numbers rounded to bfloat16."""
    x_ND, downs, routers = drawn(jnp.bfloat16)
    products, backward = jax.vjp(multiply, x_ND, downs, routers)
    rng = np.random.default_rng(1)
    cotangents = [jnp.asarray(rng.standard_normal(each.shape), each.dtype) for each in products]
    x_gradient, *weight_gradients = backward(cotangents)
    assert x_gradient.dtype == jnp.bfloat16
    x64, gradients64 = float64([x_ND])[0], float64(cotangents)
    for found, gradient in zip(itertools.chain(*weight_gradients), gradients64, strict=True):
        assert found.dtype == jnp.float32
        scale = np.abs(x64.T) @ np.abs(gradient)
        assert (np.abs(found - x64.T @ gradient) < 2**-8 * scale).all()
    weights = float64(downs + routers)
    expected = sum(a @ b.T for a, b in zip(gradients64, weights, strict=True))
    scale = sum(np.abs(a) @ np.abs(b.T) for a, b in zip(gradients64, weights, strict=True))
    assert (np.abs(np.asarray(x_gradient, np.float64) - expected) < 2**-7 * scale).all()
