"""Check that the installed vLLM and its platform are ones that the plugin can extend."""

import pkgutil

import vllm

# The extras in pyproject.toml name the same range.
OLDEST_VLLM, FIRST_UNSUPPORTED_VLLM = (0, 27), (0, 33)
# Gated subclass of each Punica wrapper of vLLM that the plugin extends.
GATED_WRAPPERS = {
    'vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU': (
        'malora_vllm.wrappers.GatedPunicaWrapperCPU'
    ),
    'vllm.lora.punica_wrapper.punica_gpu.PunicaWrapperGPU': (
        'malora_vllm.wrappers.GatedPunicaWrapperGPU'
    ),
}
# Parts of vLLM that the plugin replaces, overrides or reads.
_REQUIRED_NAMES = (
    'vllm.config.lora:LoRAConfig.compute_hash',
    'vllm.config.lora:MaxLoRARanks',
    'vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA',
    'vllm.lora.layers.row_parallel_linear:RowParallelLinearWithLoRA',
    'vllm.lora.lora_model:LoRAModel.from_local_checkpoint',
    'vllm.lora.model_manager:LoRAModelManager.activate_adapter',
    'vllm.lora.model_manager:LoRAModelManager.get_adapter',
    'vllm.lora.peft_helper:PEFTHelper.from_dict',
    'vllm.lora.peft_helper:PEFTHelper.validate_legal',
    'vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.update_metadata',
    'vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU._apply_expand',
    'vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU._apply_shrink',
    'vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.add_expand',
    'vllm.lora.punica_wrapper.punica_gpu:PunicaWrapperGPU.add_expand',
    'vllm.lora.utils:is_in_target_modules',
    'vllm.lora.worker_manager:WorkerLoRAManager._load_adapter',
    'vllm.model_executor.layers.linear:QKVParallelLinear',
    'vllm.model_executor.models.utils:is_pp_missing_parameter',
)


def find_problem(wrapper: str) -> str | None:
    """Return one sentence that says why mixtures cannot be served, or None if they can.

    Args:
        wrapper: Qualified name of the platform's Punica wrapper.
    """
    if not OLDEST_VLLM <= vllm.__version_tuple__[:2] < FIRST_UNSUPPORTED_VLLM:
        return (
            f'malora_vllm cannot serve mixtures with vLLM {vllm.__version__}: install a version '
            'from {}.{} up to, but not including, {}.{}, or another version of malora_vllm.'
        ).format(*OLDEST_VLLM, *FIRST_UNSUPPORTED_VLLM)
    if wrapper not in GATED_WRAPPERS:
        return (
            f'malora_vllm cannot serve mixtures with the LoRA kernels of this platform ({wrapper}):'
            ' serve them on a CPU, or on a GPU of NVIDIA or AMD.'
        )
    missing = [name for name in _REQUIRED_NAMES if not _exists(name)]
    if missing:
        return (
            f'malora_vllm cannot serve mixtures because this vLLM {vllm.__version__} has no '
            f'{", ".join(missing)}: install an unmodified release of vLLM.'
        )
    return None


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True
