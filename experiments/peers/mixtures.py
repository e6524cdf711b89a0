"""MoLA and MixLoRA from MoE-PEFT, with our settings."""

from collections.abc import Mapping
from typing import Any

import moe_peft
import torch
from moe_peft import models

from experiments.peers.jax_system import Leaves
from experiments.peers.links import linear_names, make_links
from experiments.peers.torch_system import DEVICE, LossFunction, TorchSystem, llama
from malora_jax import errors
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.export.peft import MODULE_NAMES
from malora_jax.training.setup import Setup

# MoE-PEFT creates no adapter without dropout. Dropout can be removed afterwards, but not from the
# plain LoRAs of MixLoRA, which check the rate at each call.
_ANY_DROPOUT = 0.5

_MOLA_NAMES = {'router': 'mola.{linear}.moe_gate.weight'} | {
    leaf: f'mola.{{linear}}.experts.{{expert}}.{MODULE_NAMES[leaf]}.weight'
    for leaf in IndependentExperts.factors
}


def mola(
    setup: Setup, adapter: AdapterConfig, leaves: Leaves, gradient_checkpointing: bool = False
) -> TorchSystem:
    """Create the MoLA of MoE-PEFT, the counterpart of our `molora`, with our settings and weights.

    Args:
        setup: Parts of the run, of which the base model and the optimizer are used.
        adapter: Adapter configuration of `molora`.
        leaves: Arrays of our adapter by path, which are copied into the model.
        gradient_checkpointing: Whether to use gradient checkpointing for each layer, as MoE-PEFT's
            own trainer always does.
    """
    model = _model(setup, adapter, 'mola')
    if adapter.dropout == 0:
        _drop_nothing(model)
    return TorchSystem(
        _loss(model, 'mola', gradient_checkpointing),
        model.get_adapter_weight_dict('mola'),
        setup.run.optimizer,
        leaves,
        make_links(leaves, setup.run.model, _MOLA_NAMES),
    )


def mixlora(setup: Setup, adapter: AdapterConfig) -> TorchSystem:
    """Create MixLoRA: a router and LoRA experts on each MLP, and a plain LoRA on attention.

    Args:
        setup: Parts of the run, of which the base model and the optimizer are used.
        adapter: Adapter configuration of `molora`. The plain LoRA has the rank of one expert.

    Raises:
        UserError: The dropout rate is 0, which MixLoRA does not support.
    """
    if adapter.dropout == 0:
        raise errors.out_of_range('adapter.dropout', adapter.dropout, 'positive for MixLoRA')
    model = _model(setup, adapter, 'mixlora')
    trained = model.get_adapter_weight_dict('mixlora')
    return TorchSystem(_loss(model, 'mixlora'), trained, setup.run.optimizer, {}, [])


def _model(setup: Setup, adapter: AdapterConfig, kind: str) -> Any:
    model = moe_peft.LLMModel(models.from_pretrained(llama(setup.base), device=DEVICE))
    config = moe_peft.adapter_factory(
        kind.upper(),
        kind,
        routing_strategy=kind,
        num_experts=adapter.num_experts,
        top_k=adapter.router.top_k,
        r=adapter.structure.rank,
        lora_alpha=int(adapter.alpha),
        lora_dropout=adapter.dropout or _ANY_DROPOUT,
        target_modules=linear_names(setup.run.model, adapter.targets),
    )
    model.init_adapter(config)
    return model


def _drop_nothing(model: Any) -> None:
    for layer in model.model_.layers_:
        for linears in layer.state_dict():
            for linear in linears.values():
                for lora in linear.loras_.values():
                    lora.dropout_.p = 0.0


def _loss(model: Any, name: str, gradient_checkpointing: bool = False) -> LossFunction:
    def loss(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = moe_peft.LLMModelInput(
            batch_configs_=[moe_peft.LLMBatchConfig(name, 0, len(batch['input_ids']))],
            batch_tokens_=batch['input_ids'],
            batch_labels_=batch['labels'],
            batch_masks_=batch['attention_mask'],
            gradient_checkpoint_='recompute' if gradient_checkpointing else 'none',
        )
        (output,) = model.forward(inputs)
        return output.loss if output.aux_loss is None else output.loss + output.aux_loss

    return loss
