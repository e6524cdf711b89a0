"""Merging of adapters into the base weights, for updates that are the same for every token.

Dimension letters: L layers, D inputs and F outputs of a linear layer, R rank.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.trees import linear_leaves, parent_module
from malora_jax.errors import UserError
from malora_jax.export.mixture_limits import check_no_second_router, unsupported_part
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel
from malora_jax.models import ModelConfig
from malora_jax.models.quantize import QuantizedKernel


def check_mergeable(trained: TrainedModel, export_format: str) -> AdapterConfig:
    """Return the adapter's settings, after checking that the adapter can be merged.

    An adapter can be merged if it is a single LoRA: it adds s · B A to the base weight W, with the
    scale s, the up-projection B and the down-projection A. DoRA then also rescales the columns.

    Args:
        trained: Trained model.
        export_format: Name of the export format, for the message.

    Raises:
        UserError: The adapter is not a single LoRA, for example because routing makes the update
            differ from token to token; or the update is zero.
    """
    check_no_second_router(trained, export_format)
    adapter = trained.model.adapter
    if adapter is None or not adapter.structure.is_mergeable:
        formats = ', '.join(
            each
            for each in ('transformers', 'vllm', 'static')
            if adapter is None or not unsupported_part(adapter, trained.method, each)
        )
        raise UserError(
            f'{trained.method} cannot be exported as {export_format}: its update is not that of '
            f'one LoRA; use --format={formats} or adapter, or train '
            "'lora', 'dora', 'asylora' or 'moslora'."
        )
    check_nonzero_update(trained, export_format)
    return adapter


def check_nonzero_update(trained: TrainedModel | TrainedAdapter, export_format: str) -> None:
    """Check that the adapter was trained and its update is not zero.

    Args:
        trained: Trained model.
        export_format: Name of the export format, for the message.

    Raises:
        UserError: The update is zero, so that the export would equal the base model.
    """
    adapter = trained.model.adapter
    targets = adapter.targets if adapter else ()
    variables = trained.variables
    last = [
        linear_leaves(variables, name)[adapter.structure.factors[-1]] for name in targets if adapter
    ]
    if trained.step == 0 or not any(np.any(leaf) for leaf in last):
        raise UserError(
            f'The run has made {trained.step} steps and its update is zero: an export as '
            f'{export_format} would change nothing.'
        )


def merged_params(trained: TrainedModel) -> Any:
    """Return the base model's `params` with the update merged in, in the dtype of the base model.

    Quantized kernels are dequantized first.

    Args:
        trained: Trained model.

    Raises:
        UserError: The adapter cannot be merged, or its update is zero.
    """
    adapter = check_mergeable(trained, 'merged')
    params = dequantized_params(trained.model.config, trained.base.params)
    layers = dict(params['layers'])
    for target in adapter.targets:
        part = parent_module(target)
        leaves = linear_leaves(trained.variables, target)
        kernel_LDF = layers[part][target]['kernel']
        merged = jax.vmap(adapter.structure.merged_kernel, (0, 0, None))
        new = merged(kernel_LDF, leaves, adapter.scale)
        linear = layers[part][target] | {'kernel': new.astype(kernel_LDF.dtype)}
        layers[part] = layers[part] | {target: linear}
    return params | {'layers': layers}


def dequantized_params(config: ModelConfig, params: Any) -> Any:
    """Return a base model's `params`, with quantized kernels dequantized to the model's dtype.

    Args:
        config: Configuration of the base model.
        params: The decoder's `params` collection.
    """
    if not config.quantize:
        return params
    flat = flatten_dict(params, sep='/')
    for path in [path for path in flat if path.endswith('/kernel')]:
        kernel = QuantizedKernel(flat[path], flat.pop(f'{path}_scale'), config.quantize)
        flat[path] = jax.vmap(QuantizedKernel.dequantize)(kernel).astype(config.dtype)
    return unflatten_dict(flat, sep='/')


def linear_leaves_float64(variables: Mapping[str, Any], target: str) -> dict[str, np.ndarray]:
    """Return the result of `linear_leaves` as float64 NumPy arrays, for accurate products."""
    leaves = linear_leaves(variables, target)
    return {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
