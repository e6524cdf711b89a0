"""Entry point for vLLM, which then runs the mixtures in its Transformers backend."""

from mixture_transformers.families import CAUSAL_LM_CLASSES


def register() -> None:
    """Register all causal language models with vLLM, which calls this in each of its processes."""
    from vllm import ModelRegistry

    backend = 'vllm.model_executor.models.transformers:TransformersForCausalLM'
    for causal_lm in CAUSAL_LM_CLASSES:
        ModelRegistry.register_model(causal_lm.__name__, backend)
