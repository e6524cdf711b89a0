"""Products with kernels of the base model, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.models import base_matmul


def random_arrays(D: int, dtype=np.float32):
    generator = np.random.default_rng(D)
    x_ND, kernel_DF = generator.standard_normal((64, D)), generator.standard_normal((D, 48))
    return jnp.asarray(x_ND, dtype), jnp.asarray(kernel_DF, dtype)


# 3.5e-7 is the error of sums of 384 terms; one product of XLA on a CPU reaches 4.3e-7 and 5.7e-7.
@pytest.mark.parametrize('D', [576, 1000, 1536, 3072])
def test_the_rounding_error_is_that_of_short_sums(D):
    x_ND, kernel_DF = random_arrays(D)
    product_NF = np.asarray(jax.jit(base_matmul.matmul)(x_ND, kernel_DF), np.float64)
    exact_NF = np.asarray(x_ND, np.float64) @ np.asarray(kernel_DF, np.float64)
    error = np.sqrt(np.square(product_NF - exact_NF).mean() / np.square(exact_NF).mean())
    assert error < 3.9e-7


@pytest.mark.parametrize('D', [100, 576, 1000])
def test_gradients_are_those_of_the_product(D):
    x_ND, kernel_DF = random_arrays(D)
    weights_NF = jnp.asarray(np.random.default_rng(1).standard_normal((64, 48)), jnp.float32)
    gradients = jax.grad(lambda *args: (base_matmul.matmul(*args) * weights_NF).sum(), (0, 1))
    x64_ND, kernel64_DF, weights64_NF = (
        np.asarray(array, np.float64) for array in (x_ND, kernel_DF, weights_NF)
    )
    dx_ND, dkernel_DF = gradients(x_ND, kernel_DF)
    np.testing.assert_allclose(dx_ND, weights64_NF @ kernel64_DF.T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(dkernel_DF, x64_ND.T @ weights64_NF, rtol=0, atol=1e-4)


def test_bfloat16_is_one_product():
    x_ND, kernel_DF = random_arrays(576, jnp.bfloat16)
    np.testing.assert_array_equal(base_matmul.matmul(x_ND, kernel_DF), x_ND @ kernel_DF)
