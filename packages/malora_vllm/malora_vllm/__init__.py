"""vLLM plugin that serves routed mixtures of LoRA experts as LoRA adapters.

vLLM computes a LoRA in two steps: `add_shrink` writes the activations A x into a buffer, and
`add_expand` adds B times the buffer to the output. In a mixture's adapter, the buffer also holds
the router's logits. The plugin multiplies each expert's activations by its gate between the steps.
"""


def register() -> None:
    """Hook the plugin into vLLM; vLLM calls this function in every process."""
    from malora_vllm import patches

    patches.hook_platform()
