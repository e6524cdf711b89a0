"""Entry point for vLLM, which then runs the mixtures in its Transformers backend.

vLLM is imported at the top: if it lacks one of the names, it logs that this plugin cannot be loaded
and serves all other models.
"""

import vllm
from vllm.config import VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from mixture_transformers.families import CAUSAL_LM_CLASSES

# Older releases round the routers to the dtype of the model.
OLDEST_VLLM = (0, 28)


class MixtureChecks(VerifyAndUpdateConfig):
    """Checks that vLLM makes at the start of a server, before it loads a mixture."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check that vLLM can run the mixture with the settings of the server.

        Raises:
            ValueError: The release of vLLM is too old, or tensor parallelism would split the inputs
                of a router.
        """
        if vllm.__version_tuple__[:2] < OLDEST_VLLM:
            raise ValueError(
                f'vLLM {vllm.__version__} would round the routers of the mixture: install vLLM '
                f'{".".join(map(str, OLDEST_VLLM))} or later.'
            )
        plan = vllm_config.model_config.hf_config.base_model_tp_plan
        split = [pattern.split('.')[-2] for pattern in plan if pattern.endswith('.router')]
        if split and vllm_config.parallel_config.tensor_parallel_size > 1:
            raise ValueError(
                f'The mixture adapts {" and ".join(split)}, and vLLM cannot split their routers '
                'over devices: start it without tensor parallelism.'
            )


def register() -> None:
    """Register all causal language models with vLLM, which calls this in each of its processes."""
    backend = 'vllm.model_executor.models.transformers:TransformersForCausalLM'
    for causal_lm in CAUSAL_LM_CLASSES:
        vllm.ModelRegistry.register_model(causal_lm.__name__, backend)
        MODELS_CONFIG_MAP[causal_lm.__name__] = MixtureChecks
