"""The numbers of a run that its training step takes as arguments.

Runs that differ in nothing else share one compiled step, and can train jointly.
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
# The config fields that become hyperparameters, by dotted name. Alpha becomes part of the scale.
CONFIG_FIELDS = (
    'seed',
    *(f'optimizer.{name}' for name in _OPTIMIZER_FIELDS),
    *('adapter.alpha', 'adapter.dropout', 'adapter.balance_weight'),
)


class Hyperparameters(struct.PyTreeNode):
    """The scalars of one run, or with a leading axis those of several runs.

    Whether dropout and the balance loss exist at all is part of the config and compiled into the
    step: a dropout rate or balance weight given here has no effect where the config has zero.

    Attributes:
        seed: Seed of the dropout masks, uint32. All other fields are float32.
        learning_rate: Peak of the learning rate schedule.
        weight_decay: Decoupled weight decay, times the learning rate.
        clip_norm: Largest norm of the whole gradient.
        router_rate, down_rate, core_rate, up_rate, magnitude_rate: Multiples of the learning rate
            for each kind of leaf.
        scale: Factor of the adapter's update: alpha / rank, or alpha / sqrt(rank).
        dropout: Probability of dropping an input of the down-projection.
        balance_weight: Coefficient of the balance loss.
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
    def of(
        cls, seed: int, optimizer: OptimizerConfig, adapter: AdapterConfig | None
    ) -> 'Hyperparameters':
        """Return the hyperparameters of a run as NumPy scalars.

        Args:
            seed: Seed of the run. Its lower 32 bits count, as for a JAX key.
            optimizer: Optimizer configuration.
            adapter: Adapter configuration, or None for the base model alone.
        """
        numbers = {name: getattr(optimizer, name) for name in _OPTIMIZER_FIELDS}
        numbers['scale'] = adapter.scale if adapter else 0.0
        numbers['dropout'] = adapter.dropout if adapter else 0.0
        numbers['balance_weight'] = adapter.router.balance_weight if adapter else 0.0
        return cls(
            np.uint32(seed & 0xFFFFFFFF),
            **{name: np.float32(number) for name, number in numbers.items()},
        )
