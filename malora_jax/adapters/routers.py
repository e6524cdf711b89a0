"""Top-k softmax routing with load balancing: settings, gates, loss and routing statistics.

Equation numbers and tables refer to the MALoRA paper.

Dimension letters: N tokens, E experts, G groups of tokens (tasks), L any leading axes (layers).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors

# Inputs of a router: 'x', the input of the linear layer before dropout; or 'first', the input after
# dropout times the shared down-projection, such as S_A drop(x). `low_rank.project_input` computes
# the logits. `AdapterConfig` permits 'first' only if all experts share their down-projection.
INPUTS = ('x', 'first')
# Gates of the top-k experts: 'softmax', their probabilities, as in the paper; 'renormalized', these
# probabilities scaled to sum to one; 'equal', 1/K each without a gradient, so that the router
# learns from the load-balancing loss alone.
GATES = ('softmax', 'renormalized', 'equal')


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """Settings of a top-k router.

    Attributes:
        top_k: Number of active experts per token, K.
        input: Input of the router, one of `INPUTS`: 'x', the input of the linear layer; or
            'first', the down-projected input.
        gates: Kind of gates of the top-k experts, one of `GATES`: 'softmax', their probabilities;
            'renormalized', these probabilities scaled to sum to one; or 'equal', 1/K
            each.
        balance_weight: Coefficient of the load-balancing loss; 0.01 in the paper's tables.

    Raises:
        UserError: A setting is unknown or out of range.
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
                'False when top_k = 1: the only gate would always be 1, and the router would get '
                'no gradient',
            )
        if self.balance_weight < 0:
            raise errors.out_of_range('adapter.balance_weight', self.balance_weight, 'at least 0')

    def gates_sum_to_one(self, num_experts: int) -> bool:
        """Return whether the gates of every token sum to one.

        Args:
            num_experts: Number of experts of the layer, E.
        """
        return self.gates != 'softmax' or self.top_k == num_experts

    def route(self, logits_NE: jax.Array, num_experts: jax.Array | None = None) -> 'Routing':
        """Choose the top-k experts of each token: G(x) = TopK(Softmax(W_g x)), eq. (4).

        Args:
            logits_NE: (N, E) float32, logits W_g x.
            num_experts: () int32 number of experts of this layer, if layers have different
                numbers; the others get the probability 0.

        Returns:
            Gates, probabilities and selected experts of each token.
        """
        if num_experts is not None:
            is_available = jnp.arange(logits_NE.shape[-1])[None] < num_experts
            logits_NE = jnp.where(is_available, logits_NE, -jnp.inf)
        probabilities_NE = jax.nn.softmax(logits_NE, axis=-1)
        selected_NE = top_k_mask(jax.lax.stop_gradient(probabilities_NE), self.top_k)
        gates_NE = probabilities_NE * selected_NE
        if self.gates == 'renormalized':
            gates_NE /= gates_NE.sum(axis=-1, keepdims=True)
        if self.gates == 'equal':
            gates_NE = selected_NE / self.top_k
        return Routing(gates_NE, probabilities_NE, selected_NE)


class Routing(NamedTuple):
    """Decisions of a router for N tokens.

    Attributes:
        gates: (N, E) float32, weight of each expert; zero outside the top k.
        probabilities: (N, E) float32, softmax over all experts.
        selected: (N, E) float32, 1 for the top-k experts of each token, else 0; no gradient.
    """

    gates: jax.Array
    probabilities: jax.Array
    selected: jax.Array


class RoutingSums(NamedTuple):
    """Sums over tokens that determine the load-balancing loss and the routing statistics.

    Attributes:
        load: (..., G, E), number of tokens of each group that were routed to each expert.
        probability: (..., G, E), router probabilities summed over the tokens of each group.
        gate: (..., G, E), gates summed over the tokens of each group.
    """

    load: jax.Array
    probability: jax.Array
    gate: jax.Array


def top_k_mask(scores_NE: jax.Array, top_k: int) -> jax.Array:
    """Return a mask of the K largest scores of each row.

    Each row has exactly K ones; among equal scores, those with lower indices win. The K passes of
    arg-max fuse into one elementwise kernel, unlike a sort.

    Args:
        scores_NE: (N, E), scores.
        top_k: Number of ones per row, K.

    Returns:
        (N, E) in the dtype of the scores: 1 for the K largest scores, else 0.
    """
    if top_k == scores_NE.shape[-1]:
        return jnp.ones_like(scores_NE)
    mask_NE = jnp.zeros_like(scores_NE)
    for _ in range(top_k):
        best_N = jnp.argmax(jnp.where(mask_NE > 0, -jnp.inf, scores_NE), axis=-1)
        mask_NE += jax.nn.one_hot(best_N, scores_NE.shape[-1], dtype=scores_NE.dtype)
    return mask_NE


def sum_by_group(routing: Routing, groups_NG: jax.Array) -> RoutingSums:
    """Sum the router's decisions over the tokens of each group.

    Args:
        routing: Decisions for N tokens.
        groups_NG: (N, G) float32, one-hot group of each token; zeros for padding, which is not
            counted.
    """

    def sums(values_NE: jax.Array) -> jax.Array:
        return jnp.matmul(groups_NG.T, values_NE, precision=jax.lax.Precision.HIGHEST)

    return RoutingSums(*map(sums, (routing.selected, routing.probabilities, routing.gates)))


def balance_loss(sums: RoutingSums, num_experts: np.ndarray | None = None) -> jax.Array:
    """Return the load-balancing loss of each router, E · Σ_t f_t p_t; 1 if balanced.

    This is the auxiliary loss of GShard and Switch Transformer. f_t is the share of the N · K
    routing assignments that go to expert t; p_t is the mean router probability of expert t. (If f_t
    were the share of the N tokens, the balanced value would be K.)

    Args:
        sums: Sums of shape (L..., G, E).
        num_experts: (L,) int32 number of experts of each layer, as `AdapterConfig.layer_experts`
            returns them; E in all layers by default.

    Returns:
        (L...,) float32.
    """
    load_LE = expert_load(sums)
    probability_LE = _shares(sums.probability.sum(axis=-2))
    experts = load_LE.shape[-1] if num_experts is None else jnp.asarray(num_experts)
    return experts * (load_LE * probability_LE).sum(axis=-1)


def expert_load(sums: RoutingSums) -> jax.Array:
    """Return the load of each expert: its share of all routing assignments.

    Args:
        sums: Sums of shape (L..., G, E).

    Returns:
        (L..., E) float32; each row sums to one, or is zero if there are no tokens.
    """
    return _shares(sums.load.sum(axis=-2))


def effective_experts(load_LE: jax.Array) -> jax.Array:
    """Return the effective number of experts, the exponential of the entropy of their loads.

    Args:
        load_LE: (L..., E), load of each expert, as `expert_load` returns it.

    Returns:
        (L...,): E if the load is balanced, 1 if one expert gets all tokens.
    """
    return jnp.exp(-jax.scipy.special.xlogy(load_LE, load_LE).sum(axis=-1))


def routing_metrics(routing: Mapping[str, RoutingSums]) -> dict[str, jax.Array]:
    """Return statistics of the expert load, averaged over all routers.

    Args:
        routing: Routing statistics by path of the adapted linear, with leaves of shape (L, G, E).

    Returns:
        `effective_experts`, exp(entropy) of the load, which is E if the load is balanced; and
        `max_expert_share`, the share of all routing assignments that the busiest expert gets. A
        token has one assignment for each expert that the router chose. Both are () float32.
    """
    load = jnp.stack([expert_load(sums) for sums in routing.values()])
    return {
        'effective_experts': effective_experts(load).mean(),
        'max_expert_share': load.max(axis=-1).mean(),
    }


def _shares(counts: jax.Array) -> jax.Array:
    total = counts.sum(axis=-1, keepdims=True)
    return counts / jnp.where(total > 0, total, 1.0)
