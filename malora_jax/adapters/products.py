"""Matrix products of stacked low-rank experts.

With all experts stacked along the rank axis, Σ_t G_t(x) B_t h_t(x) is one matrix product, static
in shape and free of sorting, gathering and dispatch; the activations of experts that were not
chosen are multiplied by zero.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, I inputs of an
expert's own factor, P = E · R stacked ranks, Q columns of a first factor.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.distributed import rules


def joint(
    x_ND: jax.Array,
    weights: Sequence[jax.Array],
    name: str,
    axis: str,
    precision: jax.lax.Precision | None = None,
) -> list[jax.Array]:
    """Multiply one input with several matrices, (D, Q) each, in a single product.

    Each alone has few columns, and takes about as long as all of them together: the time is that
    of reading the input, and of writing its gradient.

    Args:
        x_ND: The input.
        weights: The matrices, all of one shape.
        name: Name under which `saved` marks the products.
        axis: Logical name of the columns. If they are split over devices, the products are made
            one by one, because concatenated matrices would have to be moved between devices.
        precision: Precision of the product.
    """

    def product(weight_DQ: jax.Array) -> jax.Array:
        return saved(jnp.matmul(x_ND, weight_DQ, precision=precision), axis, name)

    if rules.is_split(axis):
        return [product(weight_DQ) for weight_DQ in weights]
    return jnp.split(product(jnp.concatenate(weights, axis=1)), len(weights), axis=1)


def saved(hidden: jax.Array, axis: str = 'expert', name: str = 'rank') -> jax.Array:
    """Mark activations as saved for the backward pass; they are small compared with their inputs.

    If the inputs are split over devices, this is also where their partial sums are added: before
    any gate, and before a softmax, which must not see parts of the logits.
    """
    return checkpoint_name(rules.constrain(hidden, 'rows', axis), name)


def stack_ranks(weights_EIR: jax.Array) -> jax.Array:
    """Place the matrices of all experts side by side: (E, I, R) to (I, P)."""
    return weights_EIR.swapaxes(0, 1).reshape(weights_EIR.shape[1], -1)


def gate(hidden_NP: jax.Array, gates_NE: jax.Array) -> jax.Array:
    """Multiply each expert's R activations by its gate.

    The gates are widened to (N, P) by a constant matrix of zeros and ones: reshaping the
    activations to (N, E, R) instead is a costly relayout on accelerators.
    """
    num_experts = gates_NE.shape[-1]
    rank = hidden_NP.shape[-1] // num_experts
    widen_EP = jnp.repeat(jnp.eye(num_experts, dtype=gates_NE.dtype), rank, axis=1)
    gates_NP = jnp.matmul(gates_NE, widen_EP, precision=jax.lax.Precision.HIGHEST)
    return hidden_NP * gates_NP.astype(hidden_NP.dtype)


def sum_of_experts(hidden_NP: jax.Array, weights_ERF: jax.Array) -> jax.Array:
    """Multiply each expert's activations with its own matrix, and add up: (N, F)."""
    return hidden_NP @ weights_ERF.reshape(-1, weights_ERF.shape[-1]).astype(hidden_NP.dtype)


def column_lengths(
    kernel_DF: jax.Array, down_DR: jax.Array, up_RF: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """Return the lengths of the columns of W + scale · B A, one per output: (F,) float32.

    ‖w + s A b‖² = ‖w‖² + 2 s b · Aᵀ w + s² b · Aᵀ A b, so that no matrix of the kernel's size is
    made. Lengths are at least 1e-6, because a column of zeros has no direction.
    """
    highest = jax.lax.Precision.HIGHEST
    kernel_DF = kernel_DF.astype(jnp.float32)
    cross_RF = jnp.matmul(down_DR.T, kernel_DF, precision=highest)
    square_RF = jnp.matmul(
        jnp.matmul(down_DR.T, down_DR, precision=highest), up_RF, precision=highest
    )
    added_F = (up_RF * (2 * scale * cross_RF + scale**2 * square_RF)).sum(axis=0)
    return jnp.sqrt(jnp.maximum((kernel_DF**2).sum(axis=0) + added_F, 1e-12))
