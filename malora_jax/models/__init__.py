"""Base models: configuration, decoder, text generation, quantization and weight loading."""

from malora_jax.models.config import PRESETS, ModelConfig, preset
from malora_jax.models.decoder import Decoder

__all__ = ['PRESETS', 'Decoder', 'ModelConfig', 'preset']
