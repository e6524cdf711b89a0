"""Checks of a mixture's tensors when its adapter is loaded."""

from collections.abc import Mapping
from typing import NamedTuple

from vllm.lora.layers.base import BaseLayerWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.utils import is_in_target_modules
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.model_executor.models.utils import is_pp_missing_parameter

from malora_vllm.mixture import Mixture


def check_tensors(mixture: Mixture, weights: Mapping[str, LoRALayerWeights]) -> None:
    """Check an adapter's tensors against its `mixture` block.

    Args:
        mixture: Parsed block.
        weights: Weights of the adapter, by name of the linear layer.

    Raises:
        ValueError: A factor is missing or has another rank than the block, or the adapted layers
            differ from the targets.
    """
    found = {name.rsplit('.', 1)[-1] for name in weights}
    if found != set(mixture.targets):
        raise ValueError(
            f'adapter_model.safetensors adapts {", ".join(sorted(found))}, but mixture.targets '
            f'lists {", ".join(sorted(mixture.targets))}: export the adapter again.'
        )
    for name, layer in weights.items():
        for factor, tensor, axis in (('lora_A', layer.lora_a, 0), ('lora_B', layer.lora_b, 1)):
            if tensor is None:
                raise ValueError(
                    f'adapter_model.safetensors has no {factor} of {name}: export the adapter '
                    'again.'
                )
            if tensor.ndim != 2 or tensor.shape[axis] != mixture.total_rank:
                raise ValueError(
                    f'{factor} of {name} has shape {tuple(tensor.shape)}, but mixture.num_experts, '
                    f'rank and router_parts require {mixture.total_rank} '
                    f'{("rows", "columns")[axis]}: export the adapter again.'
                )


def check_layers(
    mixture: Mixture, weights: Mapping[str, LoRALayerWeights], manager: LoRAModelManager
) -> None:
    """Check that an adapter fits the served model, and that its layers can compute a mixture.

    Args:
        mixture: Mixture of the adapter.
        weights: Weights of the adapter, by name of the linear layer.
        manager: Manager of the served model's LoRA layers.

    Raises:
        ValueError: The adapter lacks a layer of the model or has a layer that the model lacks; or a
            layer is not linear, has other numbers of inputs or outputs, or computes the router's
            logits in parts.
    """
    layers = _adaptable_layers(manager)
    for name in layers:
        if name.rsplit('.', 1)[-1] in mixture.targets and name not in weights:
            raise ValueError(
                f'adapter_model.safetensors has no weights of {name}, which mixture.targets '
                'includes: export the adapter again, or serve the base model of mixture.base.'
            )
    for name, weight in weights.items():
        if name in layers:
            _check_layer(name, weight, layers[name], manager)
        elif not _is_skipped(name, manager):
            raise ValueError(
                f'The mixture adapts {name}, which this model lacks: serve the base model of '
                'mixture.base.'
            )


class _AdaptableLayer(NamedTuple):
    """A layer that an adapter can name.

    Attributes:
        module: LoRA layer that computes it, perhaps together with others.
        part: Index of the layer in a fused layer such as qkv_proj; None if it is not fused.
    """

    module: BaseLayerWithLoRA
    part: int | None

    @property
    def num_outputs(self) -> int:
        """Number of outputs on all devices together; the layer must be linear."""
        base = self.module.base_layer
        if self.part is None:
            return base.output_size
        num_outputs = base.output_sizes[self.part]
        if isinstance(base, QKVParallelLinear) and self.part > 0:
            # If devices share a head of k and v, vLLM counts it for each of them.
            num_outputs //= base.num_kv_head_replicas
        return num_outputs


def _adaptable_layers(manager: LoRAModelManager) -> dict[str, _AdaptableLayer]:
    """Return this process's layers by the names that they have in an adapter."""
    layers = {}
    for name, module in manager.modules.items():
        if name in manager.packed_modules:
            for index, part in enumerate(manager.packed_modules[name]):
                layers[part] = _AdaptableLayer(module, index)
        else:
            layers[name] = _AdaptableLayer(module, None)
    return layers


def _is_skipped(name: str, manager: LoRAModelManager) -> bool:
    """Return whether another pipeline stage has a layer, or --lora-target-modules excludes it."""
    return is_pp_missing_parameter(name, manager.model) or not is_in_target_modules(
        name, manager.lora_config.target_modules, manager.packed_modules_mapping
    )


def _check_layer(
    name: str, weight: LoRALayerWeights, layer: _AdaptableLayer, manager: LoRAModelManager
) -> None:
    module = layer.module
    if not isinstance(module, BaseLinearLayerWithLoRA):
        raise ValueError(
            f'The mixture adapts {name}, whose type in this model is {type(module).__name__}, but '
            'only linear layers can have a mixture: export the adapter without this target.'
        )
    for factor, size, axis, expected, side in (
        ('lora_A', weight.lora_a.shape[1], 'columns', module.base_layer.input_size, 'inputs'),
        ('lora_B', weight.lora_b.shape[0], 'rows', layer.num_outputs, 'outputs'),
    ):
        if size != expected:
            raise ValueError(
                f'{factor} of {name} has {size} {axis}, but the layer has {expected} {side}: serve '
                'the base model of mixture.base.'
            )
    is_split = isinstance(module, RowParallelLinearWithLoRA) and module.tp_size > 1
    if is_split and not manager.lora_config.fully_sharded_loras:
        raise ValueError(
            f'The mixture adapts {name}, whose inputs are split over {module.tp_size} devices, so '
            "that each would route by a part of the router's logits: start the server with "
            '--fully-sharded-loras.'
        )
