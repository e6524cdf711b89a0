"""Hyperparameters that the compiled training step takes as arguments.

Runs that differ only in these numbers share one compiled step, and can train jointly.
"""

from typing import Any

import numpy as np
from flax import struct

from malora_jax.adapters import AdapterConfig
from malora_jax.training.config import OptimizerConfig

_OPTIMIZER_FIELDS = (
    *('learning_rate', 'weight_decay', 'clip_norm'),
    *('router_rate', 'down_rate', 'core_rate', 'up_rate', 'magnitude_rate'),
)
# Dotted names of the config fields that become hyperparameters. Alpha becomes part of the scale.
CONFIG_FIELDS = (
    'seed',
    *(f'optimizer.{name}' for name in _OPTIMIZER_FIELDS),
    *('adapter.alpha', 'adapter.dropout', 'adapter.balance_weight'),
)


class Hyperparameters(struct.PyTreeNode):
    """Hyperparameters of one run, as scalars, or of several runs, with a leading axis of runs.

    The compiled step contains dropout and the load-balancing loss only if the config enables them:
    if the config has zero, the values of `dropout` and `balance_weight` here have no effect.

    Attributes:
        seed: Random seed of the dropout masks and sampled experts, uint32. All other fields are
            float32.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        clip_norm: Maximum global norm of the gradient.
        router_rate, down_rate, core_rate, up_rate, magnitude_rate: Multiples of the learning rate
            for each kind of parameter.
        scale: Scale of the adapter's update: alpha / rank, or alpha / sqrt(rank).
        dropout: Dropout rate at the input of the down-projection.
        balance_weight: Coefficient of the load-balancing loss.
    """

    seed: Any
    learning_rate: Any
    weight_decay: Any
    clip_norm: Any
    router_rate: Any
    down_rate: Any
    core_rate: Any
    up_rate: Any
    magnitude_rate: Any
    scale: Any
    dropout: Any
    balance_weight: Any

    @classmethod
    def from_configs(
        cls, seed: int, optimizer: OptimizerConfig, adapter: AdapterConfig | None
    ) -> 'Hyperparameters':
        """Return the hyperparameters of a run as NumPy scalars.

        Args:
            seed: Random seed of the run. Only its lower 32 bits count, as for a JAX key.
            optimizer: Optimizer configuration.
            adapter: Adapter configuration; None for the base model alone.
        """
        numbers = {name: getattr(optimizer, name) for name in _OPTIMIZER_FIELDS}
        numbers['scale'] = adapter.scale if adapter else 0.0
        numbers['dropout'] = adapter.dropout if adapter else 0.0
        numbers['balance_weight'] = adapter.router.balance_weight if adapter else 0.0
        return cls(
            np.uint32(seed & 0xFFFFFFFF),
            **{name: np.float32(number) for name, number in numbers.items()},
        )
