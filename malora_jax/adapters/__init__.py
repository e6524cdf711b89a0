"""Adapters: mixtures of LoRA experts with top-k routing, and the methods built from them.

This package does not depend on models, data or training. Main modules, in the order of the MALoRA
paper: `structures` (the low-rank factors of the experts), `initializers` (eq. (8) to (10)),
`routers` (top-k routing, eq. (4), and the load-balancing loss), `low_rank` (the update of one
linear layer) and `methods` (settings of each named method).
"""

from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.low_rank import LowRankExperts
from malora_jax.adapters.magnitude import Magnitude
from malora_jax.adapters.methods import METHODS, method
from malora_jax.adapters.settings import AdapterSettings

__all__ = [
    'METHODS',
    'AdapterConfig',
    'AdapterSettings',
    'LowRankExperts',
    'Magnitude',
    'method',
]
