"""Adapters: structures, routers, methods and low-rank experts.

Knows nothing of models, data or training. To read it with the paper open: `structures` (the
experts), `initializers` (eq. (8) to (10)), `routers` (eq. (4) and the balance loss), `low_rank`
(the update of a linear) and `methods` (the table of settings).
"""

from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.low_rank import LowRankExperts
from malora_jax.adapters.magnitude import Magnitude
from malora_jax.adapters.methods import METHODS, AdapterSettings, method

__all__ = [
    'METHODS',
    'AdapterConfig',
    'AdapterSettings',
    'LowRankExperts',
    'Magnitude',
    'method',
]
