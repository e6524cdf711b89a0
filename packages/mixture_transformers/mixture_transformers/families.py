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

from mixture_transformers.pretrained import MixtureConfig, MixturePreTrained

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


class MixtureLlamaModel(MixturePreTrained, LlamaModel):
    """Llama with routed mixtures, without an output head."""

    config_class = MixtureLlamaConfig


class MixtureMistralModel(MixturePreTrained, MistralModel):
    """Mistral with routed mixtures, without an output head."""

    config_class = MixtureMistralConfig


class MixtureQwen2Model(MixturePreTrained, Qwen2Model):
    """Qwen2 with routed mixtures, without an output head."""

    config_class = MixtureQwen2Config


class MixtureQwen3Model(MixturePreTrained, Qwen3Model):
    """Qwen3 with routed mixtures, without an output head."""

    config_class = MixtureQwen3Config


class MixtureLlamaForCausalLM(MixturePreTrained, LlamaForCausalLM):
    """Llama with routed mixtures, as a causal language model."""

    config_class = MixtureLlamaConfig


class MixtureMistralForCausalLM(MixturePreTrained, MistralForCausalLM):
    """Mistral with routed mixtures, as a causal language model."""

    config_class = MixtureMistralConfig


class MixtureQwen2ForCausalLM(MixturePreTrained, Qwen2ForCausalLM):
    """Qwen2 with routed mixtures, as a causal language model."""

    config_class = MixtureQwen2Config


class MixtureQwen3ForCausalLM(MixturePreTrained, Qwen3ForCausalLM):
    """Qwen3 with routed mixtures, as a causal language model."""

    config_class = MixtureQwen3Config


MODEL_CLASSES = (MixtureLlamaModel, MixtureMistralModel, MixtureQwen2Model, MixtureQwen3Model)
CAUSAL_LM_CLASSES = (
    MixtureLlamaForCausalLM,
    MixtureMistralForCausalLM,
    MixtureQwen2ForCausalLM,
    MixtureQwen3ForCausalLM,
)


def register_auto_classes() -> None:
    """Register all classes with the Auto classes of transformers."""
    for model, causal_lm in zip(MODEL_CLASSES, CAUSAL_LM_CLASSES, strict=True):
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
