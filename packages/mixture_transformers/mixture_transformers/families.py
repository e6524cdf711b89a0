"""Llama, Mistral, Qwen2 and Qwen3 with routed mixtures of low-rank experts."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from mixture_transformers.pretrained import MixtureConfig, MixtureForCausalLM, MixtureModel

# Each configuration repeats `__init__`, because newer releases of transformers generate one for
# each subclass that does not define it.


class MixtureLlamaConfig(MixtureConfig, LlamaConfig):
    """Configuration of Llama with routed mixtures."""

    model_type = 'mixture_llama'
    __init__ = MixtureConfig.__init__


class MixtureMistralConfig(MixtureConfig, MistralConfig):
    """Configuration of Mistral with routed mixtures."""

    model_type = 'mixture_mistral'
    __init__ = MixtureConfig.__init__


class MixtureQwen2Config(MixtureConfig, Qwen2Config):
    """Configuration of Qwen2 with routed mixtures."""

    model_type = 'mixture_qwen2'
    __init__ = MixtureConfig.__init__


class MixtureQwen3Config(MixtureConfig, Qwen3Config):
    """Configuration of Qwen3 with routed mixtures."""

    model_type = 'mixture_qwen3'
    __init__ = MixtureConfig.__init__


class MixtureLlamaModel(MixtureModel, LlamaModel):
    """Llama with routed mixtures, without an output head."""

    config_class = MixtureLlamaConfig


class MixtureMistralModel(MixtureModel, MistralModel):
    """Mistral with routed mixtures, without an output head."""

    config_class = MixtureMistralConfig


class MixtureQwen2Model(MixtureModel, Qwen2Model):
    """Qwen2 with routed mixtures, without an output head."""

    config_class = MixtureQwen2Config


class MixtureQwen3Model(MixtureModel, Qwen3Model):
    """Qwen3 with routed mixtures, without an output head."""

    config_class = MixtureQwen3Config


class MixtureLlamaForCausalLM(MixtureForCausalLM, LlamaForCausalLM):
    """Llama with routed mixtures, as a causal language model."""

    config_class = MixtureLlamaConfig
    model_class = MixtureLlamaModel


class MixtureMistralForCausalLM(MixtureForCausalLM, MistralForCausalLM):
    """Mistral with routed mixtures, as a causal language model."""

    config_class = MixtureMistralConfig
    model_class = MixtureMistralModel


class MixtureQwen2ForCausalLM(MixtureForCausalLM, Qwen2ForCausalLM):
    """Qwen2 with routed mixtures, as a causal language model."""

    config_class = MixtureQwen2Config
    model_class = MixtureQwen2Model


class MixtureQwen3ForCausalLM(MixtureForCausalLM, Qwen3ForCausalLM):
    """Qwen3 with routed mixtures, as a causal language model."""

    config_class = MixtureQwen3Config
    model_class = MixtureQwen3Model


CAUSAL_LM_CLASSES = (
    MixtureLlamaForCausalLM,
    MixtureMistralForCausalLM,
    MixtureQwen2ForCausalLM,
    MixtureQwen3ForCausalLM,
)


def register_auto_classes() -> None:
    """Register all classes with the Auto classes of transformers."""
    for causal_lm in CAUSAL_LM_CLASSES:
        config = causal_lm.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, causal_lm.model_class, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
