"""Checks of a mixture's tensors when its adapter is loaded."""

from collections.abc import Mapping

from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager

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


def check_layers(weights: Mapping[str, LoRALayerWeights], manager: LoRAModelManager) -> None:
    """Check that the served model's layers can compute a mixture.

    Args:
        weights: Weights of the adapter, by name of the linear layer.
        manager: Manager of the served model's LoRA layers.

    Raises:
        ValueError: A layer is not linear, has another number of inputs, or computes the router's
            logits in parts.
    """
    layers = dict(manager.modules)
    for name, parts in manager.packed_modules.items():
        layers |= dict.fromkeys(parts, manager.modules[name])
    for name, weight in weights.items():
        # Another pipeline stage may have the layer, or --lora-target-modules may exclude it.
        if name not in layers:
            continue
        layer = layers[name]
        if not isinstance(layer, BaseLinearLayerWithLoRA):
            raise ValueError(
                f'The mixture adapts {name}, whose type in this model is {type(layer).__name__}, '
                'but only linear layers can have a mixture: export the adapter without this target.'
            )
        num_inputs = weight.lora_a.shape[1]
        if num_inputs != layer.base_layer.input_size:
            raise ValueError(
                f'lora_A of {name} has {num_inputs} columns, but the layer has '
                f'{layer.base_layer.input_size} inputs: serve the base model of mixture.base.'
            )
        is_split = isinstance(layer, RowParallelLinearWithLoRA) and layer.tp_size > 1
        if is_split and not manager.lora_config.fully_sharded_loras:
            raise ValueError(
                f'The mixture adapts {name}, whose inputs are split over {layer.tp_size} devices, '
                "so that each would route by a part of the router's logits: start the server with "
                '--fully-sharded-loras.'
            )
