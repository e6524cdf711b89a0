"""Export of a routed mixture for `transformers`, with the package `mixture_transformers`.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, R rank of one
expert.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from malora_jax import files
from malora_jax.export import huggingface, huggingface_names, merge, mixture, tokenizer_files
from malora_jax.export.directory import atomic_directory
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.export.safetensors_files import write_shards
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models.loading.params import to_huggingface

_MIXTURE_WEIGHTS = 'mixture.safetensors'


def write_transformers_mixture(
    trained: TrainedModel, output: pathlib.Path, adapter_only: bool = False
) -> None:
    """Write a routed mixture, with its tokenizer and generation settings.

    The mixture is stored in float32, and the base model in its own dtype.

    Args:
        trained: Trained model with a routed mixture.
        output: Directory to create.
        adapter_only: Whether the base model is left out. It is then loaded from the repository or
            the location that the config names, or from an export of the base model.

    Raises:
        UserError: The model is not a routed mixture with the same number of experts in all layers,
            its update is zero, or the directory exists and is not empty.
    """
    adapter, model = mixture.check_mixture(trained, 'transformers'), trained.model.config
    params = merge.dequantized_params(model, trained.base.params)
    content = huggingface.config_json(model) | tokenizer_files.special_token_ids(trained)
    content |= {
        'architectures': [f'Mixture{each}' for each in content['architectures']],
        'model_type': f'mixture_{content["model_type"]}',
        'mixture': mixture.mixture_block(trained, base_fingerprint(params), router_parts=1),
    }
    tensors = _mixture_tensors(trained)
    with atomic_directory(output) as temporary:
        if adapter_only:
            write_shards(temporary / _MIXTURE_WEIGHTS, tensors)
        else:
            base = to_huggingface(model, params)
            adapted = {huggingface_names.module_name(target) for target in adapter.targets}
            tensors |= _renamed(base, adapted, model.num_layers)
            write_shards(temporary / huggingface.WEIGHTS, tensors)
        files.write_json(temporary / 'config.json', content)
        tokenizer_files.write_tokenizer_files(temporary, trained)


def _mixture_tensors(trained: TrainedModel) -> dict[str, np.ndarray]:
    """Return the tensors of all experts and routers, float32, by name."""
    tensors = {}
    for target, experts in mixture.dense_experts(trained):
        leaves = {
            'down.weight': experts.stacked_down(),
            'up.weight': experts.stacked_up(),
            'router.weight': experts.router.swapaxes(1, 2),
        }
        if experts.router_offset is not None:
            leaves['router.offset.weight'] = experts.router_offset
        if experts.up_router is not None:
            leaves['router.up.weight'] = experts.up_router.swapaxes(1, 2)
        for leaf, array in leaves.items():
            for layer, value in enumerate(array):
                name = f'{huggingface_names.module_name(target).format(layer)}.{leaf}'
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
