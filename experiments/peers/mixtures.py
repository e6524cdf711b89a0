"""MoLA and MixLoRA of MoE-PEFT, without its recomputation of activations.

Its own trainer recomputes each layer in the backward pass (`gradient_checkpoint_` is 'recompute'),
which takes longer; here nothing is recomputed, for any system.
"""

import moe_peft
import torch
from moe_peft import models

from experiments.peers.ours import Leaves
from experiments.peers.torch_system import Loss, TorchSystem, linear_names, links, llama
from malora_jax import errors
from malora_jax.adapters import AdapterConfig
from malora_jax.training.setup import Setup

# MoE-PEFT insists on some dropout when an adapter is made, and so do the LoRAs of MixLoRA when they
# are used.
_ANY_DROPOUT = 0.5

_MOLA_NAMES = {
    'router': 'mola.{linear}.moe_gate.weight',
    'down': 'mola.{linear}.experts.{expert}.lora_A.weight',
    'up': 'mola.{linear}.experts.{expert}.lora_B.weight',
}


def mola(setup: Setup, adapter: AdapterConfig, leaves: Leaves) -> TorchSystem:
    """A router and LoRA experts on each linear, with our weights: our `molora`, renormalised.

    Args:
        setup: whose base and optimizer are used.
        adapter: of `molora`.
        leaves: of our adapter.
    """
    model = _model(setup, adapter, 'MOLA', 'mola')
    if adapter.dropout == 0:
        for layer in model.model_.layers_:
            for part in layer.state_dict():
                for linear in part.values():
                    for lora in linear.loras_.values():
                        lora.dropout_.p = 0.0
    system = TorchSystem(
        _loss(model, 'mola'),
        model.get_adapter_weight_dict('mola'),
        links(leaves, setup.run.model, _MOLA_NAMES),
        setup.run.optimizer,
    )
    system.copy(leaves)
    return system


def mixlora(setup: Setup, adapter: AdapterConfig) -> TorchSystem:
    """A router and LoRA experts on each MLP, plain LoRA on attention; nothing of ours is the same.

    Its experts of an MLP share the products with the frozen gate and up, and its balance loss is
    on, as it is by default.

    Raises:
        UserError: there is no dropout.
    """
    if adapter.dropout == 0:
        raise errors.out_of_range('adapter.dropout', adapter.dropout, 'positive for MixLoRA')
    model = _model(setup, adapter, 'MIXLORA', 'mixlora')
    weights = model.get_adapter_weight_dict('mixlora')
    return TorchSystem(_loss(model, 'mixlora'), weights, [], setup.run.optimizer)


def _model(
    setup: Setup, adapter: AdapterConfig, kind: str, name: str
) -> moe_peft.LLMModel:
    model = moe_peft.LLMModel(models.from_pretrained(llama(setup.base), device='cpu'))
    config = moe_peft.adapter_factory(
        kind,
        name,
        routing_strategy=name,
        num_experts=adapter.num_experts,
        top_k=adapter.top_k,
        r=adapter.rank,
        lora_alpha=int(adapter.alpha),
        lora_dropout=adapter.dropout or _ANY_DROPOUT,
        target_modules=linear_names(setup.run.model, adapter.targets),
    )
    model.init_adapter(config)
    return model


def _loss(model: moe_peft.LLMModel, name: str) -> Loss:
    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        count = len(batch['input_ids'])
        (output,) = model.forward(
            moe_peft.LLMModelInput(
                batch_configs_=[moe_peft.LLMBatchConfig(name, 0, count)],
                batch_tokens_=batch['input_ids'],
                batch_labels_=batch['labels'],
                batch_masks_=batch['attention_mask'],
            )
        )
        return output.loss if output.aux_loss is None else output.loss + output.aux_loss

    return loss
