"""The adapters: settings, routers, low-rank experts. Knows nothing of models, data or training."""

from malora_jax.adapters.config import METHODS, AdapterConfig, method
from malora_jax.adapters.low_rank import LowRankExperts
from malora_jax.adapters.magnitude import Magnitude

__all__ = ['METHODS', 'AdapterConfig', 'LowRankExperts', 'Magnitude', 'method']
