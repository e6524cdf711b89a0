"""LoRA and DoRA of Hugging Face PEFT, on LlamaForCausalLM with its default attention (SDPA)."""

import peft
import torch.distributed.tensor  # noqa: F401 - peft uses it, and leaves its import to others.

from experiments.peers.jax_system import Leaves
from experiments.peers.links import linear_names, make_links
from experiments.peers.torch_system import TorchSystem, llama
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.structures import DoRA
from malora_jax.export.peft import MODULE_NAMES
from malora_jax.training.setup import Setup

_NAMES = {
    leaf: f'base_model.model.model.{{linear}}.{module}.default.weight'
    for leaf, module in MODULE_NAMES.items()
}


def make(setup: Setup, adapter: AdapterConfig, leaves: Leaves) -> TorchSystem:
    """Create the PEFT system with our settings and weights.

    Args:
        setup: Parts of the run, of which the base model and the optimizer are used.
        adapter: Adapter configuration of `lora` or `dora`.
        leaves: Arrays of our adapter by path, which are copied into the model.
    """
    config = setup.run.model
    settings = peft.LoraConfig(
        r=adapter.structure.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=isinstance(adapter.structure, DoRA),
        target_modules=linear_names(config, adapter.targets),
    )
    model = peft.get_peft_model(llama(setup.base), settings).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return TorchSystem(
        lambda batch: model(**batch).loss,
        trained,
        setup.run.optimizer,
        leaves,
        make_links(leaves, config, _NAMES),
    )
