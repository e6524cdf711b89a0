"""LoRA and DoRA of Hugging Face's PEFT, on LlamaForCausalLM with its default attention (SDPA)."""

import peft
import torch.distributed.tensor  # noqa: F401 - peft uses it, and leaves its import to others.

from experiments.peers.ours import Leaves
from experiments.peers.torch_system import TorchSystem, linear_names, links, llama
from malora_jax.adapters import AdapterConfig
from malora_jax.training.setup import Setup

_PREFIX = 'base_model.model.model.{linear}'
_NAMES = {
    'down': f'{_PREFIX}.lora_A.default.weight',
    'up': f'{_PREFIX}.lora_B.default.weight',
    'magnitude': f'{_PREFIX}.lora_magnitude_vector.default.weight',
}


def make(setup: Setup, adapter: AdapterConfig, leaves: Leaves) -> TorchSystem:
    """The system with our settings and weights.

    Args:
        setup: whose base and optimizer are used.
        adapter: of `lora` or `dora`.
        leaves: of our adapter.
    """
    config = setup.run.model
    model = peft.get_peft_model(
        llama(setup.base),
        peft.LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_dora=adapter.magnitude,
            target_modules=linear_names(config, adapter.targets),
        ),
    ).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    system = TorchSystem(
        lambda batch: model(**batch).loss,
        trained,
        links(leaves, config, _NAMES),
        setup.run.optimizer,
    )
    system.copy(leaves)
    return system
