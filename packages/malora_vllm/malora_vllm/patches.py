"""Changes to vLLM at run time.

When vLLM sets up LoRA, it asks the platform for the name of the Punica wrapper. The plugin hooks
only this call. Processes and servers without LoRA are unchanged, and import nothing else.
"""

import functools
import importlib.metadata
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform

# A name below 'vllm' has the server's log format.
_logger = init_logger(f'vllm.{__name__}')


def hook_platform() -> None:
    """Make the platform choose the gated Punica wrapper, once per process."""
    platform = type(current_platform)
    original = getattr(platform, 'get_punica_wrapper', None)
    if original is None:
        # vLLM itself refuses mixtures then, because they have no rank.
        _logger.error(
            'malora_vllm cannot serve mixtures because this vLLM has no '
            'Platform.get_punica_wrapper: install a supported version of vLLM.'
        )
        return
    if hasattr(original, 'is_hooked'):
        return

    def get_punica_wrapper(cls: type) -> str:
        return enable_mixtures(original())

    get_punica_wrapper.is_hooked = True
    platform.get_punica_wrapper = classmethod(get_punica_wrapper)


@functools.cache
def enable_mixtures(wrapper: str) -> str:
    """Prepare vLLM for mixtures, or for refusing them if it is incompatible.

    Args:
        wrapper: Qualified name of the platform's Punica wrapper.

    Returns:
        Qualified name of the gated wrapper, or of the platform's own if vLLM is incompatible.
    """
    # Imported here because they load all of vLLM's LoRA layers.
    from malora_vllm import compatibility

    problem = compatibility.find_problem(wrapper)
    if problem is not None:
        _logger.error('%s', problem)
        patch_settings(problem)
        return wrapper
    patch_settings()
    patch_loading()
    patch_activation()
    patch_compile_hash()
    return compatibility.GATED_WRAPPERS[wrapper]


def patch_settings(problem: str | None = None) -> None:
    """Make vLLM read the settings of a mixture's adapter.

    Args:
        problem: Why mixtures cannot be served; None if they can.
    """
    from vllm.lora.peft_helper import PEFTHelper

    original = PEFTHelper.from_dict.__func__

    def from_dict(cls: type[PEFTHelper], config: dict[str, Any]) -> PEFTHelper:
        if 'mixture' not in config:
            return original(cls, config)
        if problem is not None:
            raise ValueError(problem)
        # Imported here because an incompatible vLLM may lack what the module imports.
        from malora_vllm.peft_helper import MixturePEFTHelper, lora_settings

        return original(MixturePEFTHelper, lora_settings(config))

    PEFTHelper.from_dict = classmethod(from_dict)


def patch_loading() -> None:
    """Make vLLM check a mixture's tensors and keep the mixture in the loaded LoRAModel."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.request import LoRARequest
    from vllm.lora.worker_manager import WorkerLoRAManager

    from malora_vllm.adapter_checks import check_layers, check_tensors

    original_from_checkpoint = LoRAModel.from_local_checkpoint.__func__
    original_load_adapter = WorkerLoRAManager._load_adapter

    def from_local_checkpoint(
        cls: type[LoRAModel],
        lora_dir: str,
        expected_lora_modules: set[str],
        peft_helper: PEFTHelper,
        **kwargs: Any,
    ) -> LoRAModel:
        model = original_from_checkpoint(
            cls, lora_dir, expected_lora_modules, peft_helper, **kwargs
        )
        model.mixture = getattr(peft_helper, 'mixture', None)
        if model.mixture is not None:
            check_tensors(model.mixture, model.loras)
        return model

    def load_adapter(self: WorkerLoRAManager, lora_request: LoRARequest) -> LoRAModel:
        model = original_load_adapter(self, lora_request)
        if model.mixture is not None:
            check_layers(model.mixture, model.loras, self._adapter_manager)
        return model

    # vLLM also makes LoRAModels without a checkpoint, to warm up.
    LoRAModel.mixture = None
    LoRAModel.from_local_checkpoint = classmethod(from_local_checkpoint)
    WorkerLoRAManager._load_adapter = load_adapter


def patch_activation() -> None:
    """Make vLLM pass the mixture of each slot to the Punica wrappers."""
    from vllm.lora.model_manager import LoRAModelManager

    original = LoRAModelManager.activate_adapter

    def activate_adapter(self: LoRAModelManager, lora_id: int) -> bool:
        is_new = original(self, lora_id)
        if is_new:
            slot = self.lora_index_to_id.index(lora_id)
            for wrapper in self.punica_wrapper_mapping.values():
                wrapper.set_mixture(slot, self.get_adapter(lora_id).mixture)
        return is_new

    LoRAModelManager.activate_adapter = activate_adapter


def patch_compile_hash() -> None:
    """Make vLLM keep compiled models with gates apart from those without.

    vLLM stores compiled models on disk and finds them by a hash of its version and settings. The
    hash does not depend on the Punica wrapper.
    """
    from vllm.config.lora import LoRAConfig

    original = LoRAConfig.compute_hash
    version = importlib.metadata.version('malora_vllm')

    def compute_hash(self: LoRAConfig) -> str:
        return f'{original(self)} malora_vllm {version}'

    LoRAConfig.compute_hash = compute_hash
