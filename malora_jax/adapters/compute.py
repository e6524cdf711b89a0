"""The experts' update in rank space: gate the stacked low-rank activations, project up once.

With all experts stacked along the rank axis, Σ_t G_t(x) B_t h_t(x) is one matrix product, static
in shape and free of sorting, gathering and dispatch; the unchosen experts' activations are
multiplied by zero.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, S rank of the
shared subspace, P = E · R stacked ranks.
"""

import jax
import jax.numpy as jnp


def project_down(x_ND: jax.Array, down_EDR: jax.Array) -> jax.Array:
    """A_t x of every expert, stacked: (N, P)."""
    return x_ND @ _stack_ranks(down_EDR).astype(x_ND.dtype)


def project_down_shared(
    x_ND: jax.Array, shared_down_DS: jax.Array, core_ESR: jax.Array
) -> jax.Array:
    """P_t S_A x of every expert, stacked: (N, P). S_A x is computed once."""
    shared_NS = x_ND @ shared_down_DS.astype(x_ND.dtype)
    return shared_NS @ _stack_ranks(core_ESR).astype(x_ND.dtype)


def gate(hidden_NP: jax.Array, gates_NE: jax.Array) -> jax.Array:
    """Multiplies each expert's R activations by its gate.

    The gates are widened to (N, P) by a constant matrix of zeros and ones: reshaping the
    activations to (N, E, R) instead is a costly relayout on accelerators.
    """
    num_experts = gates_NE.shape[-1]
    rank = hidden_NP.shape[-1] // num_experts
    widen_EP = jnp.repeat(jnp.eye(num_experts, dtype=gates_NE.dtype), rank, axis=1)
    gates_NP = jnp.matmul(gates_NE, widen_EP, precision=jax.lax.Precision.HIGHEST)
    return hidden_NP * gates_NP.astype(hidden_NP.dtype)


def project_up(hidden_NP: jax.Array, up_ERF: jax.Array) -> jax.Array:
    """Σ_t B_t h_t: (N, F)."""
    return hidden_NP @ up_ERF.reshape(-1, up_ERF.shape[-1]).astype(hidden_NP.dtype)


def _stack_ranks(weights_EIR: jax.Array) -> jax.Array:
    """(E, I, R) to (I, P), expert after expert."""
    return weights_EIR.swapaxes(0, 1).reshape(weights_EIR.shape[1], -1)
