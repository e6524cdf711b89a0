"""Export of a routed mixture for vLLM, with the plugin `malora_vllm`.

The files have the layout of a PEFT adapter, whose rank covers the experts and the router. The
plugin applies the gates between the two projections. `adapter_config.json` has no rank, so that
vLLM without the plugin refuses the adapter instead of adding up all experts.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, R rank of one
expert, P rows of the router's parts.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from malora_jax import files
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.export import mixture, peft
from malora_jax.export.directory import atomic_directory
from malora_jax.export.trained_model import TrainedAdapter

# vLLM stores adapters in the dtype of the model, such as bfloat16. The router's weight is the sum
# of two tensors, so that it keeps 16 bits of precision: one rounded to bfloat16, and the remainder.
_ROUTER_PARTS = 2


def write_vllm_mixture(trained: TrainedAdapter, output: pathlib.Path) -> None:
    """Write a routed mixture as a LoRA whose rank covers all experts and the router.

    Args:
        trained: Trained adapter, a routed mixture. The base model is not needed.
        output: Directory to create.

    Raises:
        UserError: The model is a single LoRA, its update is zero, or the directory exists and is
            not empty.
    """
    mixture.check_mixture(trained, 'vllm')
    tensors = {}
    for target, experts in mixture.dense_experts(trained):
        router_LPD = _router_parts(experts.router)
        up_LFS = experts.stacked_up()
        zeros_LFP = np.zeros((*up_LFS.shape[:2], router_LPD.shape[1]))
        stacked = (
            np.concatenate([experts.stacked_down(), router_LPD], axis=1),
            np.concatenate([up_LFS, zeros_LFP], axis=2),
        )
        for leaf, array in zip(IndependentExperts.factors, stacked, strict=True):
            for layer, value in enumerate(array):
                name = peft.tensor_name(target, leaf).format(layer)
                tensors[name] = np.ascontiguousarray(value, np.float32)
    # The fingerprint of a quantized base model is that of its codes.
    fingerprint = None if trained.model.config.quantize else trained.base_fingerprint
    block = mixture.mixture_block(trained, fingerprint, _ROUTER_PARTS)
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': block['base']['name'],
        'target_modules': block['targets'],
        'bias': 'none',
        'mixture': block,
    }
    with atomic_directory(output) as temporary:
        safetensors.numpy.save_file(tensors, temporary / peft.WEIGHTS, metadata={'format': 'pt'})
        files.write_json(temporary / peft.CONFIG, config)


def _router_parts(router_LDE: np.ndarray) -> np.ndarray:
    """Return the router's weight as two parts, (L, 2 E, D), of which bfloat16 keeps the first."""
    router_LED = router_LDE.swapaxes(1, 2)
    rounded_LED = router_LED.astype(jnp.bfloat16).astype(np.float64)
    return np.concatenate([rounded_LED, router_LED - rounded_LED], axis=1)
