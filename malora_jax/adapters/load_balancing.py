"""Load balancing of experts, by a loss or by a bias; and statistics of the load.

The loss is the auxiliary loss of GShard and Switch Transformer. The bias of an expert has no
gradient: it is added to its score when experts are chosen, but not to its gate. After each step, it
rises by u if the expert got fewer tokens than the mean, and falls by u if it got more (SMoRA, arXiv
2501.15103; FlyLoRA; the same rule as in DeepSeek-V3).

Settings of `RouterConfig` choose the forms of the authors' code instead: `bias_in_gates`,
`bias_target` and `balance_scores`.

Dimension letters: N tokens, E experts, G groups of tokens (tasks), L any leading axes (layers).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.routers import BALANCE_BIAS, Routing
from malora_jax.adapters.scores import shares


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


class DistanceSums(NamedTuple):
    """Routing sums for a load-balancing loss that uses distances from the threshold.

    Attributes:
        load, probability, gate: The sums of `RoutingSums`.
        distance: (..., G, E), distances p - τ summed over the tokens of each group.
    """

    load: jax.Array
    probability: jax.Array
    gate: jax.Array
    distance: jax.Array


def sum_by_group(
    routing: Routing, groups_NG: jax.Array, distances_NE: jax.Array | None = None
) -> RoutingSums | DistanceSums:
    """Sum the router's decisions over the tokens of each group.

    Args:
        routing: Decisions for N tokens.
        groups_NG: (N, G) float32, one-hot group of each token; zeros for padding, which is not
            counted.
        distances_NE: Distances that the load-balancing loss uses, as
            `RouterConfig.balance_distances` returns them.

    Returns:
        `DistanceSums` if there are distances.
    """

    def sums(values_NE: jax.Array) -> jax.Array:
        return jnp.matmul(groups_NG.T, values_NE, precision=jax.lax.Precision.HIGHEST)

    found = RoutingSums(*map(sums, (routing.selected, routing.probabilities, routing.gates)))
    return found if distances_NE is None else DistanceSums(*found, sums(distances_NE))


def balance_loss(
    sums: RoutingSums | DistanceSums, num_experts: np.ndarray | None = None
) -> jax.Array:
    """Return the load-balancing loss of each router, E · Σ_t f_t p_t; 1 if balanced.

    This is the auxiliary loss of GShard and Switch Transformer. f_t is the share of the N · K
    routing assignments that go to expert t; p_t is the mean router probability of expert t. (If f_t
    were the share of the N tokens, the balanced value would be K.)

    With `DistanceSums`, the loss is that of AdaMoLE's published code: f_t is the share of the N
    tokens, and p_t the mean distance of expert t from the threshold. It has no fixed balanced
    value.

    Args:
        sums: Sums of shape (L..., G, E).
        num_experts: (L,) int32 number of experts of each layer, as `AdapterConfig.layer_experts`
            returns them; E in all layers by default.

    Returns:
        (L...,) float32.
    """
    if isinstance(sums, DistanceSums):
        # The probabilities of a token sum to one.
        tokens_L1 = jax.lax.stop_gradient(sums.probability).sum(axis=(-2, -1))[..., None]
        tokens_L1 = jnp.maximum(tokens_L1, 1)
        load_LE, score_LE = (each.sum(axis=-2) / tokens_L1 for each in (sums.load, sums.distance))
    else:
        load_LE, score_LE = expert_load(sums), shares(sums.probability.sum(axis=-2))
    experts = load_LE.shape[-1] if num_experts is None else jnp.asarray(num_experts)
    return experts * (load_LE * score_LE).sum(axis=-1)


def mean_balance_loss(
    routing: Mapping[str, RoutingSums], adapter: AdapterConfig | None
) -> jax.Array:
    """Return the load-balancing loss, averaged over all routers.

    Args:
        routing: Routing statistics by path of the adapted linear, with leaves of shape (L, G, E).
        adapter: Settings of the adapter; None for the base model alone, which has no routers.

    Returns:
        () float32; 1 if the load is balanced, 0 if there are no routers.
    """
    if adapter is None or not routing:
        return jnp.float32(0)
    each = [balance_loss(sums, adapter.layer_experts(len(sums.load))) for sums in routing.values()]
    return jnp.stack(each).mean()


def update_biases(
    adapter: AdapterConfig, frozen: Mapping[str, Any], routing: Mapping[str, RoutingSums]
) -> dict[str, Any]:
    """Return the leaves that the optimizer does not train, with the biases after one step.

    Args:
        adapter: Settings of the adapter.
        frozen: Collection `adapter_frozen`, with the biases (L, E) of each linear layer.
        routing: Routing statistics of the tokens of the step, on all devices, by path of the linear
            layer; leaves of shape (L, G, E).
    """
    leaves, router = flatten_dict(frozen, sep='/'), adapter.router
    for path, sums in routing.items():
        load_LE = sums.load.sum(axis=1)
        experts_L = adapter.layer_experts(len(load_LE))
        total_L1 = load_LE.sum(axis=1, keepdims=True)
        if router.bias_target == 'share':  # FlyLoRA's code: K / E, the share of a single token.
            total_L1 = jnp.full_like(total_L1, router.top_k)
        # Not the distance from the quotient, whose rounding would move a bias at the target.
        missing_LE = total_L1 - experts_L[:, None] * load_LE
        leaves[f'{path}/{BALANCE_BIAS}'] += router.bias_rate * jnp.sign(missing_LE)
    return unflatten_dict(leaves, sep='/')


def expert_load(sums: RoutingSums) -> jax.Array:
    """Return the load of each expert: its share of all routing assignments.

    Args:
        sums: Sums of shape (L..., G, E).

    Returns:
        (L..., E) float32; each row sums to one, or is zero if there are no tokens.
    """
    return shares(sums.load.sum(axis=-2))


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
