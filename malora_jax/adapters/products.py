"""Matrix products in rank space: all low-rank experts, stacked along the rank axis.

The output of the experts for an input x is Σ_t G_t(x) B_t h_t(x). Here G_t(x) is the gate of expert
t, B_t its up-projection, and h_t(x) the vector of its R activations. With stacked experts, this sum
is one matrix product. Its shapes are static, and it needs no sorting, gathering or token dispatch.
The activations of experts outside the top k are multiplied by a gate of zero.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, I inputs of an
expert's own factor, P = E · R stacked ranks, Q columns of the first factor.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from malora_jax.distributed import sharding

# TPUs pad the second to last axis of float32 arrays to a multiple of this number.
_TPU_SUBLANES = 8


def save_for_backward(hidden: jax.Array, axis: str = 'expert', name: str = 'rank') -> jax.Array:
    """Mark activations to be saved for the backward pass under rematerialization.

    Activations in rank space are small compared with their inputs. If the D inputs are sharded over
    devices, each device has only a partial sum of the activations. The sharding constraint here
    makes XLA add up these partial sums now, before the activations are gated. Router logits are
    also completed here, before the softmax, which needs complete logits.

    Args:
        hidden: (N, Q), activations.
        axis: Logical axis name of the columns.
        name: Name that a rematerialization policy refers to, 'rank' or 'router'.
    """
    return checkpoint_name(sharding.constrain(hidden, 'rows', axis), name)


def stack_ranks(weights_EIR: jax.Array) -> jax.Array:
    """Concatenate the matrices of all experts along the rank axis: (E, I, R) to (I, P)."""
    return weights_EIR.swapaxes(0, 1).reshape(weights_EIR.shape[1], -1)


def gate(hidden_NP: jax.Array, gates_NE: jax.Array) -> jax.Array:
    """Multiply the R activations of each expert by its gate.

    A product with a constant matrix of zeros and ones repeats the gates to (N, P). The alternative,
    reshaping the activations to (N, E, R), is a costly change of layout on accelerators.

    Args:
        hidden_NP: (N, P), activations of all experts.
        gates_NE: (N, E), gates.

    Returns:
        (N, P) in the dtype of the activations.
    """
    num_experts = gates_NE.shape[-1]
    rank = hidden_NP.shape[-1] // num_experts
    widen_EP = jnp.repeat(jnp.eye(num_experts, dtype=gates_NE.dtype), rank, axis=1)
    gates_NP = jnp.matmul(gates_NE, widen_EP, precision=jax.lax.Precision.HIGHEST)
    return hidden_NP * gates_NP.astype(hidden_NP.dtype)


def sum_of_experts(hidden_NP: jax.Array, weights_ERF: jax.Array) -> jax.Array:
    """Multiply the activations of each expert with its own matrix, and sum over experts.

    Args:
        hidden_NP: (N, P), gated activations of all experts.
        weights_ERF: (E, R, F), matrix of each expert.

    Returns:
        (N, F) in the dtype of the activations.
    """
    E, R, F = weights_ERF.shape
    if _pad(E) * R < E * _pad(R):
        weights_ERF = map_gradient(_store_experts_last, weights_ERF)
    return hidden_NP @ weights_ERF.reshape(-1, F).astype(hidden_NP.dtype)


def _pad(size: int) -> int:
    """Return the size in memory of the second to last axis of a float32 array on a TPU."""
    return -(-size // _TPU_SUBLANES) * _TPU_SUBLANES


def _store_experts_last(gradient_ERF: jax.Array) -> jax.Array:
    """Return a gradient that TPUs store in the order (R, E, F).

    The gradients of all layers are in memory at once, and would be padded from a rank of 12 to 16.
    """
    return jax.lax.platform_dependent(
        gradient_ERF,
        tpu=lambda gradient_ERF: with_layout_constraint(gradient_ERF, Layout((1, 0, 2))),
        default=lambda gradient_ERF: gradient_ERF,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def map_gradient(function: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """Return the values unchanged, but apply a function to their gradient.

    Args:
        function: Function that returns the same gradient, computed or stored in another way.
        values: Any array.
    """
    return values


map_gradient.defvjp(
    lambda function, values: (values, None), lambda function, _, gradient: (function(gradient),)
)


def column_norms(
    kernel_DF: jax.Array, down_DR: jax.Array, up_RF: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """Return the Euclidean norm of each column of W + scale · B A, (F,) float32.

    A column holds the weights of one output. Let w be the column of W and b the row of B for that
    output, and s the scale. The column of the sum is w + s Aᵀ b, and its squared norm is
    ‖w‖² + 2 s bᵀ(A w) + s² bᵀ(A Aᵀ) b. The function computes these three terms, so it needs no
    temporary matrix of the size of the kernel. Norms are at least 1e-6, so that a column of zeros
    can be divided by its norm.

    Args:
        kernel_DF: (D, F), frozen kernel W.
        down_DR: (D, R) float32, A transposed.
        up_RF: (R, F) float32, B transposed.
        scale: Scale of the update.
    """
    highest = jax.lax.Precision.HIGHEST
    kernel_DF = kernel_DF.astype(jnp.float32)
    cross_RF = jnp.matmul(down_DR.T, kernel_DF, precision=highest)
    square_RF = jnp.matmul(
        jnp.matmul(down_DR.T, down_DR, precision=highest), up_RF, precision=highest
    )
    added_F = (up_RF * (2 * scale * cross_RF + scale**2 * square_RF)).sum(axis=0)
    return jnp.sqrt(jnp.maximum((kernel_DF**2).sum(axis=0) + added_F, 1e-12))
