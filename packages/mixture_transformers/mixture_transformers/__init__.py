"""Routed mixtures of low-rank experts for `transformers`.

Importing this package registers Llama, Mistral, Qwen2 and Qwen3 with routed mixtures:

    import mixture_transformers
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained('exports/malora')

No code of the export is executed, and only safetensors files are read.
"""

from mixture_transformers.families import (
    MixtureLlamaConfig,
    MixtureLlamaForCausalLM,
    MixtureLlamaModel,
    MixtureMistralConfig,
    MixtureMistralForCausalLM,
    MixtureMistralModel,
    MixtureQwen2Config,
    MixtureQwen2ForCausalLM,
    MixtureQwen2Model,
    MixtureQwen3Config,
    MixtureQwen3ForCausalLM,
    MixtureQwen3Model,
    register_auto_classes,
)
from mixture_transformers.fingerprint import base_fingerprint

__all__ = [
    'MixtureLlamaConfig',
    'MixtureLlamaForCausalLM',
    'MixtureLlamaModel',
    'MixtureMistralConfig',
    'MixtureMistralForCausalLM',
    'MixtureMistralModel',
    'MixtureQwen2Config',
    'MixtureQwen2ForCausalLM',
    'MixtureQwen2Model',
    'MixtureQwen3Config',
    'MixtureQwen3ForCausalLM',
    'MixtureQwen3Model',
    'base_fingerprint',
]

register_auto_classes()
