"""The top-k softmax router, eq. (4), its balance loss and its statistics, as pure functions.

Dimension letters: N tokens, E experts, G groups of tokens (tasks), L any leading axes (layers).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """What the router decided for each token; all (N, E), float32.

    Attributes:
        gates: weight of each expert, zero for the unchosen.
        probabilities: softmax over all experts.
        selected: 1 for the chosen experts, exactly K a token; carries no gradient.
    """

    gates: jax.Array
    probabilities: jax.Array
    selected: jax.Array


class RoutingSums(NamedTuple):
    """What the balance loss and the statistics need of one router, summed over tokens.

    Attributes:
        load: (..., G, E), token slots that each group of tokens gave to each expert.
        probability: (..., G, E), router probabilities summed over the tokens of each group.
        gate: (..., G, E), gates summed over the tokens of each group.
    """

    load: jax.Array
    probability: jax.Array
    gate: jax.Array


def top_k_mask(scores_NE: jax.Array, top_k: int) -> jax.Array:
    """One for the `top_k` largest scores of each row, else zero.

    Exactly `top_k` ones, ties too (the lower index wins): K passes of arg-max, which fuse into
    one elementwise kernel where a sort would not.
    """
    if top_k == scores_NE.shape[-1]:
        return jnp.ones_like(scores_NE)
    mask_NE = jnp.zeros_like(scores_NE)
    for _ in range(top_k):
        best_N = jnp.argmax(jnp.where(mask_NE > 0, -jnp.inf, scores_NE), axis=-1)
        mask_NE += jax.nn.one_hot(best_N, scores_NE.shape[-1], dtype=scores_NE.dtype)
    return mask_NE


def route(
    logits_NE: jax.Array,
    top_k: int,
    *,
    renormalize: bool = False,
    equal_gates: bool = False,
) -> Routing:
    """G(x) = TopK(Softmax(W_g x)), eq. (4).

    Args:
        logits_NE: W_g x, float32.
        top_k: K.
        renormalize: whether the kept gates are scaled to sum to one.
        equal_gates: whether each kept gate is 1/K, without a gradient.
    """
    probabilities_NE = jax.nn.softmax(logits_NE, axis=-1)
    selected_NE = top_k_mask(jax.lax.stop_gradient(probabilities_NE), top_k)
    gates_NE = probabilities_NE * selected_NE
    if renormalize:
        gates_NE /= gates_NE.sum(axis=-1, keepdims=True)
    if equal_gates:
        gates_NE = selected_NE / top_k
    return Routing(gates_NE, probabilities_NE, selected_NE)


def sum_by_group(routing: Routing, groups_NG: jax.Array) -> RoutingSums:
    """Sums over the tokens of each group.

    Args:
        routing: the decisions for N tokens.
        groups_NG: float32, one-hot; a token whose row is zero (padding) counts nowhere.
    """

    def sums(values_NE: jax.Array) -> jax.Array:
        return jnp.matmul(groups_NG.T, values_NE, precision=jax.lax.Precision.HIGHEST)

    return RoutingSums(*map(sums, (routing.selected, routing.probabilities, routing.gates)))


def balance_loss(sums: RoutingSums) -> jax.Array:
    """E · Σ_t f_t p_t of each router, the Switch/GShard auxiliary loss; 1 when balanced.

    f_t is the share of token slots routed to expert t, p_t the mean router probability of
    expert t. Shares of slots, not of tokens: counting tokens would make the balanced value K.

    Args:
        sums: leaves of shape (L..., G, E).

    Returns:
        (L...,) float32.
    """
    load_LE = expert_load(sums)
    probability_LE = _shares(sums.probability.sum(axis=-2))
    return load_LE.shape[-1] * (load_LE * probability_LE).sum(axis=-1)


def expert_load(sums: RoutingSums) -> jax.Array:
    """f: the share of token slots that each expert got; (L..., E), rows sum to one."""
    return _shares(sums.load.sum(axis=-2))


def effective_experts(load_LE: jax.Array) -> jax.Array:
    """exp(entropy) of expert loads: E when balanced, 1 when one expert gets everything."""
    return jnp.exp(-jax.scipy.special.xlogy(load_LE, load_LE).sum(axis=-1))


def _shares(counts: jax.Array) -> jax.Array:
    total = counts.sum(axis=-1, keepdims=True)
    return counts / jnp.where(total > 0, total, 1.0)
