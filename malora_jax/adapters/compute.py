"""The experts' update in rank space: gate the stacked low-rank activations, project up once.

With all experts stacked along the rank axis, Σ_t G_t(x) B_t h_t(x) is one matrix product, static
in shape and free of sorting, gathering and dispatch; the unchosen experts' activations are
multiplied by zero.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, S rank of the
subspace, C inputs of an expert's own core, P = E · R stacked ranks, Q columns of a first factor.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.distributed import rules


class Projected(NamedTuple):
    """What an adapter makes of its linear's input first.

    Attributes:
        logits: (N, E) float32, the router's; None without one.
        hidden: (N, Q), the input after dropout times the first factor: S_A x, or A_t x of all
            experts, one after the other.
        dropped: (N, D), the input after dropout.
    """

    logits: jax.Array | None
    hidden: jax.Array
    dropped: jax.Array


def project(
    x_ND: jax.Array, dropped_ND: jax.Array, leaves: Sequence[Mapping[str, jax.Array]]
) -> list[Projected]:
    """The first products of all adapters on one input, in two: of routers and of first factors.

    Each alone has few columns, and takes about as long as all of them together: the time is that of
    reading the input, and of writing its gradient.

    Args:
        x_ND: what routers see; their logits are float32 whatever its dtype.
        dropped_ND: the same after dropout.
        leaves: of each adapter, all of one method.
    """
    firsts = [_first(each).astype(x_ND.dtype) for each in leaves]
    shared = any('shared_down' in each for each in leaves)
    hidden = _products(dropped_ND, firsts, 'rank', 'shared_rank' if shared else 'expert')
    logits: Sequence[jax.Array | None] = [None] * len(leaves)
    if any('router' in each for each in leaves):
        routers = [each['router'].astype(jnp.float32) for each in leaves]
        x32_ND, highest = x_ND.astype(jnp.float32), jax.lax.Precision.HIGHEST
        logits = _products(x32_ND, routers, 'router', 'expert', highest)
    return [Projected(*both, dropped_ND) for both in zip(logits, hidden, strict=True)]


def stack(hidden_NQ: jax.Array, factors: Mapping[str, jax.Array], num_experts: int) -> jax.Array:
    """The rank-R activations of every expert, stacked, as they are before gating: (N, P).

    A_t x; or P_t S_A x, P_t S_t x or A x (once for all) where the factors are such.
    """
    core_ECR = factors.get('core')
    if 'shared_down' in factors:
        if core_ECR is None:
            return jnp.tile(hidden_NQ, (1, num_experts))
        return _named(hidden_NQ @ _stack_ranks(core_ECR).astype(hidden_NQ.dtype))
    if core_ECR is None or 'shared_up' in factors:
        return hidden_NQ
    E, C, R = core_ECR.shape
    hidden_NEC = hidden_NQ.reshape(-1, E, C)
    hidden_NER = jnp.einsum('NEC,ECR->NER', hidden_NEC, core_ECR.astype(hidden_NQ.dtype))
    return _named(hidden_NER.reshape(-1, E * R))


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


def output(hidden_NP: jax.Array, factors: Mapping[str, jax.Array]) -> jax.Array:
    """Σ_t B_t h_t of stacked and gated activations, or S_B Σ_t P_t h_t: (N, F)."""
    if 'shared_up' in factors:
        shared_NS = _project(hidden_NP, factors['core'])
        return shared_NS @ factors['shared_up'].astype(hidden_NP.dtype)
    return _project(hidden_NP, factors['up'])


def column_lengths(
    kernel_DF: jax.Array, down_DR: jax.Array, up_RF: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """Lengths of the columns of W + scale · B A, one an output: (F,) float32.

    ‖w + s A b‖² = ‖w‖² + 2 s b · Aᵀ w + s² b · Aᵀ A b, so that no matrix of the kernel's size is
    made. Lengths below 1e-6 are that: a column of zeros has no direction.
    """
    highest = jax.lax.Precision.HIGHEST
    kernel_DF = kernel_DF.astype(jnp.float32)
    cross_RF = jnp.matmul(down_DR.T, kernel_DF, precision=highest)
    square_RF = jnp.matmul(
        jnp.matmul(down_DR.T, down_DR, precision=highest), up_RF, precision=highest
    )
    added_F = (up_RF * (2 * scale * cross_RF + scale**2 * square_RF)).sum(axis=0)
    return jnp.sqrt(jnp.maximum((kernel_DF**2).sum(axis=0) + added_F, 1e-12))


def _first(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """The factor that meets the input: (D, Q)."""
    return leaves['shared_down'] if 'shared_down' in leaves else _stack_ranks(leaves['down'])


def _products(
    x_ND: jax.Array,
    weights: Sequence[jax.Array],
    name: str,
    axis: str,
    precision: jax.lax.Precision | None = None,
) -> list[jax.Array]:
    """The product of x with each matrix (D, Q), all of one shape."""

    def product(weight_DQ: jax.Array) -> jax.Array:
        return _named(jnp.matmul(x_ND, weight_DQ, precision=precision), axis, name)

    if rules.is_split(axis):  # Side by side, they would have to be moved between devices.
        return [product(weight_DQ) for weight_DQ in weights]
    return jnp.split(product(jnp.concatenate(weights, axis=1)), len(weights), axis=1)


def _named(hidden: jax.Array, axis: str = 'expert', name: str = 'rank') -> jax.Array:
    """Named to be kept for the backward pass: small beside what it is made from.

    Where the inputs are split over devices this is a sum over them, before any gate meets it, and
    before a softmax: that of parts of the logits would be another router.
    """
    return checkpoint_name(rules.constrain(hidden, 'rows', axis), name)


def _stack_ranks(weights_EIR: jax.Array) -> jax.Array:
    """(E, I, R) to (I, P), expert after expert."""
    return weights_EIR.swapaxes(0, 1).reshape(weights_EIR.shape[1], -1)


def _project(hidden_NP: jax.Array, weights_ERF: jax.Array) -> jax.Array:
    """The sum over experts of their own projections: (N, F)."""
    return hidden_NP @ weights_ERF.reshape(-1, weights_ERF.shape[-1]).astype(hidden_NP.dtype)
