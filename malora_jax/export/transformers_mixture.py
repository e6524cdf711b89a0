"""Export of a routed mixture for `transformers`, with the package `mixture_transformers`.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, R rank of one
expert.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from malora_jax import files
from malora_jax.adapters import AdapterConfig
from malora_jax.errors import UserError
from malora_jax.export import huggingface, merge, mixture, tokenizer_files
from malora_jax.export.directory import atomic_directory
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.export.safetensors_files import write_shards
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models.loading.params import to_huggingface

_MIXTURE_WEIGHTS = 'mixture.safetensors'


def write_mixture(trained: TrainedModel, output: pathlib.Path, adapter_only: bool = False) -> None:
    """Write a routed mixture, with its tokenizer and generation settings.

    The mixture is stored in float32, and the base model in its own dtype.

    Args:
        trained: Trained model with a routed mixture.
        output: Directory to create.
        adapter_only: Whether the base model is left out. It is then loaded from the repository or
            the location that the config names.

    Raises:
        UserError: The model is a single LoRA, its update is zero, the base model is quantized and
            left out, or the directory exists and is not empty.
    """
    adapter, model = mixture.check_mixture(trained, 'transformers'), trained.model.config
    if adapter_only and model.quantize:
        raise UserError(
            f'--adapter_only: the base model of this run is quantized ({model.quantize}), so no '
            'repository has its weights; export it without --adapter_only.'
        )
    params = merge.dequantized_params(model, trained.base.params)
    content = huggingface.config_json(model) | tokenizer_files.special_token_ids(trained)
    content |= {
        'architectures': [f'Mixture{each}' for each in content['architectures']],
        'model_type': f'mixture_{content["model_type"]}',
        'mixture': mixture.describe(trained, base_fingerprint(params), router_parts=1),
    }
    tensors = _mixture_tensors(adapter, trained)
    with atomic_directory(output) as temporary:
        if adapter_only:
            write_shards(temporary / _MIXTURE_WEIGHTS, tensors)
        else:
            base = to_huggingface(model, params)
            adapted = {mixture.module(target) for target in adapter.targets}
            tensors |= _renamed(base, adapted, model.num_layers)
            write_shards(temporary / huggingface.WEIGHTS, tensors)
        files.write_json(temporary / 'config.json', content)
        tokenizer_files.write_tokenizer_files(temporary, trained)


def _mixture_tensors(adapter: AdapterConfig, trained: TrainedModel) -> dict[str, np.ndarray]:
    """Return the tensors of all experts and routers, float32, by name."""
    tensors = {}
    for target in adapter.targets:
        leaves = merge.linear_leaves_float64(trained.variables, target)
        experts = mixture.fold(adapter, leaves)
        stacked = experts.stacked_down(), experts.stacked_up(), experts.router.swapaxes(1, 2)
        for leaf, array in zip(experts._fields, stacked, strict=True):
            for layer, value in enumerate(array):
                name = f'{mixture.module(target).format(layer)}.{leaf}.weight'
                tensors[name] = np.ascontiguousarray(value, np.float32)
    return tensors


def _renamed(
    tensors: Mapping[str, np.ndarray], adapted: set[str], num_layers: int
) -> dict[str, np.ndarray]:
    """Return the base model's tensors; those of an adapted layer are in its submodule `base`."""
    modules = {name.format(layer) for name in adapted for layer in range(num_layers)}

    def rename(name: str) -> str:
        module, _, leaf = name.rpartition('.')
        return f'{module}.base.{leaf}' if module in modules else name

    return {rename(name): tensor for name, tensor in tensors.items()}
