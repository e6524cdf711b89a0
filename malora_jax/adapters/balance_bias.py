"""Load balancing by a bias without a gradient, instead of a loss.

The bias of an expert is added to its score when experts are chosen, but not to its gate. After each
step, it rises by u if the expert got fewer tokens than the mean, and falls by u if it got more
(SMoRA, arXiv 2501.15103; FlyLoRA; the same rule as in DeepSeek-V3).

Dimension letters: L layers, G groups of tokens (tasks), E experts.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.routers import BALANCE_BIAS, RoutingSums


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
    leaves = flatten_dict(frozen, sep='/')
    for path, sums in routing.items():
        load_LE = sums.load.sum(axis=1)
        experts_L = adapter.layer_experts(len(load_LE))
        mean_L1 = load_LE.sum(axis=1, keepdims=True) / experts_L[:, None]
        name = f'{path}/{BALANCE_BIAS}'
        leaves[name] += adapter.router.bias_rate * jnp.sign(mean_L1 - load_LE)
    return unflatten_dict(leaves, sep='/')
