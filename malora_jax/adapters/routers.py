"""The top-k softmax router, eq. (4): settings, gates, balance loss and statistics.

Dimension letters: N tokens, E experts, G groups of tokens (tasks), L any leading axes (layers).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from malora_jax import errors

# Inputs of a router: 'x', the input of the linear before dropout; or 'first', the input after
# dropout times the first factor, such as S_A drop(x). `low_rank.first_products` computes the logits
# from it, and `AdapterConfig` requires that all experts share the first factor for 'first'.
INPUTS = ('x', 'first')
# Gates of the chosen experts: their probabilities, as in the paper; these scaled to sum to one; or
# 1/K each without a gradient, so that the router learns from the balance loss alone.
GATES = ('softmax', 'renormalized', 'equal')


@dataclasses.dataclass(frozen=True)
class Router:
    """Settings of a router: its input, its gates, and how it is balanced.

    Attributes:
        top_k: K, the number of active experts per token.
        input: One of `INPUTS`.
        gates: One of `GATES`.
        balance_weight: Coefficient of the balance loss; 0.01 in the paper's tables.
    """

    top_k: int = 1
    input: str = 'x'
    gates: str = 'softmax'
    balance_weight: float = 0.01

    def __post_init__(self):
        if self.input not in INPUTS:
            raise errors.unknown_name('adapter.router_input', self.input, INPUTS)
        if self.gates not in GATES:
            raise errors.unknown_name('router gates', self.gates, GATES)
        if self.top_k < 1:
            raise errors.out_of_range('adapter.top_k', self.top_k, 'at least 1')
        if self.gates == 'renormalized' and self.top_k == 1:
            raise errors.out_of_range(
                'adapter.renormalize',
                True,
                'False when top_k = 1: the one gate would always be 1 and the router get no '
                'gradient',
            )
        if self.balance_weight < 0:
            raise errors.out_of_range('adapter.balance_weight', self.balance_weight, 'at least 0')

    def sum_to_one(self, num_experts: int) -> bool:
        """Return whether the gates of every token sum to one."""
        return self.gates != 'softmax' or self.top_k == num_experts

    def route(self, logits_NE: jax.Array) -> 'Routing':
        """Return G(x) = TopK(Softmax(W_g x)), eq. (4), of float32 logits W_g x."""
        probabilities_NE = jax.nn.softmax(logits_NE, axis=-1)
        selected_NE = top_k_mask(jax.lax.stop_gradient(probabilities_NE), self.top_k)
        gates_NE = probabilities_NE * selected_NE
        if self.gates == 'renormalized':
            gates_NE /= gates_NE.sum(axis=-1, keepdims=True)
        if self.gates == 'equal':
            gates_NE = selected_NE / self.top_k
        return Routing(gates_NE, probabilities_NE, selected_NE)


class Routing(NamedTuple):
    """The decisions of a router for N tokens; all (N, E), float32.

    Attributes:
        gates: Weight of each expert, zero for those that were not chosen.
        probabilities: Softmax over all experts.
        selected: 1 for the chosen experts, exactly K per token; carries no gradient.
    """

    gates: jax.Array
    probabilities: jax.Array
    selected: jax.Array


class RoutingSums(NamedTuple):
    """Sums over tokens from which the balance loss and the statistics of a router are computed.

    Attributes:
        load: (..., G, E), token slots that each group of tokens gave to each expert.
        probability: (..., G, E), router probabilities summed over the tokens of each group.
        gate: (..., G, E), gates summed over the tokens of each group.
    """

    load: jax.Array
    probability: jax.Array
    gate: jax.Array


def top_k_mask(scores_NE: jax.Array, top_k: int) -> jax.Array:
    """Return 1 for the `top_k` largest scores of each row, else 0.

    There are exactly `top_k` ones; if scores are equal, the lower index wins. K passes of arg-max
    fuse into one elementwise kernel, which a sort would not.
    """
    if top_k == scores_NE.shape[-1]:
        return jnp.ones_like(scores_NE)
    mask_NE = jnp.zeros_like(scores_NE)
    for _ in range(top_k):
        best_N = jnp.argmax(jnp.where(mask_NE > 0, -jnp.inf, scores_NE), axis=-1)
        mask_NE += jax.nn.one_hot(best_N, scores_NE.shape[-1], dtype=scores_NE.dtype)
    return mask_NE


def sum_by_group(routing: Routing, groups_NG: jax.Array) -> RoutingSums:
    """Sum the decisions over the tokens of each group.

    Args:
        routing: Decisions for N tokens.
        groups_NG: float32, one-hot; a token whose row is zero (padding) counts nowhere.
    """

    def sums(values_NE: jax.Array) -> jax.Array:
        return jnp.matmul(groups_NG.T, values_NE, precision=jax.lax.Precision.HIGHEST)

    return RoutingSums(*map(sums, (routing.selected, routing.probabilities, routing.gates)))


def balance_loss(sums: RoutingSums) -> jax.Array:
    """Return E · Σ_t f_t p_t of each router, the Switch/GShard auxiliary loss; 1 if balanced.

    f_t is the share of token slots routed to expert t, p_t the mean router probability of
    expert t. Shares of slots, not of tokens: counting tokens would make the balanced value K.

    Args:
        sums: Leaves of shape (L..., G, E).

    Returns:
        (L...,) float32.
    """
    load_LE = expert_load(sums)
    probability_LE = _shares(sums.probability.sum(axis=-2))
    return load_LE.shape[-1] * (load_LE * probability_LE).sum(axis=-1)


def expert_load(sums: RoutingSums) -> jax.Array:
    """Return f, the share of token slots of each expert: (L..., E), rows sum to one."""
    return _shares(sums.load.sum(axis=-2))


def effective_experts(load_LE: jax.Array) -> jax.Array:
    """Return exp(entropy) of expert loads: E if balanced, 1 if one expert gets everything."""
    return jnp.exp(-jax.scipy.special.xlogy(load_LE, load_LE).sum(axis=-1))


def _shares(counts: jax.Array) -> jax.Array:
    total = counts.sum(axis=-1, keepdims=True)
    return counts / jnp.where(total > 0, total, 1.0)
