"""Product of activations with a kernel of the base model, with short float32 sums on CPUs.

XLA's float32 product on a CPU adds up to about 1,000 terms one after another. The rounding error
grows with the square root of their number, and differs between processors. This module splits
the contracted axis into slices, and adds their products.

Dimension letters: N tokens, D inputs, F outputs.
"""

import jax
import jax.numpy as jnp

from malora_jax.distributed import sharding

# Longest sum without an intermediate result.
_MAX_TERMS = 384


def matmul(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """Return x @ kernel, (N, F).

    On a mesh, where slices of a sharded axis would move data between devices, and for other dtypes
    than float32, this is one product. So are both gradients.

    Args:
        x_ND: Input.
        kernel_DF: Kernel, in the dtype of the input.
    """
    is_short = x_ND.shape[1] <= _MAX_TERMS
    if is_short or x_ND.dtype != jnp.float32 or sharding.is_mesh_set():
        return x_ND @ kernel_DF
    return _sliced_matmul(x_ND, kernel_DF)


@jax.custom_vjp
def _sliced_matmul(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x_ND, kernel_DF, cpu=_sum_of_slices, default=jnp.matmul)


def _sum_of_slices(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    num_slices = -(-x_ND.shape[1] // _MAX_TERMS)
    slices = zip(
        jnp.array_split(x_ND, num_slices, axis=1),
        jnp.array_split(kernel_DF, num_slices, axis=0),
        strict=True,
    )
    first, *others = (x_NS @ kernel_SF for x_NS, kernel_SF in slices)
    return sum(others, start=first)


def _forward(x_ND, kernel_DF):
    return _sliced_matmul(x_ND, kernel_DF), (x_ND, kernel_DF)


def _backward(residuals, gradient_NF):
    x_ND, kernel_DF = residuals
    return gradient_NF @ kernel_DF.T, x_ND.T @ gradient_NF


_sliced_matmul.defvjp(_forward, _backward)
