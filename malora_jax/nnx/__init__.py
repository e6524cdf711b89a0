"""Adapters of malora_jax on models of Flax NNX, such as those of google/tunix and MaxText.

Main modules: `provider` (adding adapters to a model), `layers` (the adapter of one layer),
`linear_maps` (which layers can be adapted) and `losses` (what a trainer adds to its loss). The
mathematics is that of `malora_jax.adapters`.
"""

from malora_jax.nnx.layers import AdapterLayer, FrozenAdapter, RoutingStatistics
from malora_jax.nnx.losses import balance_loss, routing_statistics, training_loss
from malora_jax.nnx.provider import adapt, rematerialize

__all__ = [
    'AdapterLayer',
    'FrozenAdapter',
    'RoutingStatistics',
    'adapt',
    'balance_loss',
    'rematerialize',
    'routing_statistics',
    'training_loss',
]
