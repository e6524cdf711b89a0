"""LoRA adapters in PEFT's file format: adapter_config.json and adapter_model.safetensors.

Dimension letters: L layers, D inputs and F outputs of a linear layer, R rank.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from malora_jax import files
from malora_jax.adapters.config import LINEARS, AdapterConfig
from malora_jax.adapters.dense import fold
from malora_jax.adapters.structures import DoRA
from malora_jax.adapters.trees import linear_leaves, parent_module
from malora_jax.errors import UserError, short_repr
from malora_jax.export import huggingface_names, merge, tokenizer_files
from malora_jax.export.directory import atomic_directory
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import ModelConfig
from malora_jax.schema import PositiveInt, find_mismatch

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# Names of PEFT's modules, by leaf. The magnitude is a vector, whose name has no suffix '.weight'.
MODULE_NAMES = {'down': 'lora_A', 'up': 'lora_B', 'magnitude': 'lora_magnitude_vector'}
# PEFT settings that may change the meaning of the tensors, with the values that leave it unchanged.
_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'bias': ('none',),
    'fan_in_fan_out': (False,),
    'lora_bias': (False,),
    'rank_pattern': ({},),
    'alpha_pattern': ({},),
    'modules_to_save': (None, []),
    'trainable_token_indices': (None,),
    'layer_replication': (None,),
    'use_qalora': (False,),
    'use_bdlora': (None, False),
    'target_parameters': (None, []),
    'alora_invocation_tokens': (None,),
    'arrow_config': (None,),
    'kasa_config': (None,),
    'monteclora_config': (None,),
    # Other initializations of PEFT change the base weights.
    'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
}


def is_peft(directory: pathlib.Path) -> bool:
    """Return whether a directory holds an adapter in PEFT's format."""
    return (directory / CONFIG).is_file()


def write_peft(trained: TrainedModel, output: pathlib.Path) -> None:
    """Write an adapter in PEFT's format, with its tokenizer and generation settings.

    Args:
        trained: Trained model of method LoRA, rsLoRA, DoRA, AsyLoRA, MoSLoRA or M-LoRA.
        output: Directory to create.

    Raises:
        UserError: The adapter is of another method and cannot be written as a single LoRA, the
            update is zero, or the directory exists and is not empty.
    """
    adapter = merge.check_mergeable(trained, 'peft')
    # A residual adds its ranks to those of the expert.
    parts = 1 + adapter.structure.num_residual_experts
    tensors = {}
    for target in adapter.targets:
        for leaf, array in _lora_leaves(trained, adapter, target).items():
            for layer, value in enumerate(np.asarray(array)):
                tensors[tensor_name(target, leaf).format(layer)] = value.T.copy()
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': huggingface_names.base_name(trained),
        'r': parts * adapter.structure.rank,
        # PEFT divides by the rank, or by its root.
        'lora_alpha': adapter.alpha * parts ** (0.5 if adapter.rank_stabilized else 1),
        'lora_dropout': adapter.dropout,
        'target_modules': huggingface_names.target_modules(adapter),
        'use_rslora': adapter.rank_stabilized,
        'use_dora': isinstance(adapter.structure, DoRA),
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
    }
    with atomic_directory(output) as temporary:
        safetensors.numpy.save_file(tensors, temporary / WEIGHTS, metadata={'format': 'pt'})
        files.write_json(temporary / CONFIG, config)
        tokenizer_files.write_tokenizer_files(temporary, trained)


def _lora_leaves(
    trained: TrainedModel, adapter: AdapterConfig, target: str
) -> dict[str, jax.Array]:
    """Return A and B, (L, D, R) and (L, R, F), and DoRA's magnitude, (L, F).

    The ranks of a residual come after those of the only expert.
    """
    leaves = linear_leaves(trained.variables, target)
    experts = fold(adapter, leaves)
    others = {name: leaves[name] for name in adapter.structure.kernel_dependent}
    down_LDR, up_LRF = experts.stacked_down().swapaxes(1, 2), experts.stacked_up().swapaxes(1, 2)
    return {'down': down_LDR, 'up': up_LRF} | others


def read_peft(directory: pathlib.Path, model: ModelConfig) -> tuple[dict[str, np.ndarray], float]:
    """Read an adapter in PEFT's format, as adapter leaves of this project.

    Args:
        directory: Directory with PEFT's two files.
        model: Configuration of the model that the adapter belongs to.

    Returns:
        A pair. The first part holds the float32 leaves by path, such as 'layers/attention/q/down',
        stacked over the transformer layers: `down` (L, 1, D, R), `up` (L, 1, R, F) and, for DoRA,
        `magnitude` (L, F). The axis of size 1 is the axis of the experts. The second part is the
        scale of the update: α / R or, for rsLoRA, α / √R.

    Raises:
        UserError: A file is missing or broken, a setting is not implemented, a tensor belongs to no
            linear layer of the model, or a linear layer is adapted in some transformer layers only.
        FileNotFoundError: There is no adapter_config.json.
    """
    config = files.read_json(directory / CONFIG, dict, 'save it again')
    if not all(key in config for key in ('r', 'lora_alpha')):
        raise UserError(
            f"{directory / CONFIG} does not describe a LoRA: it must have 'r' and 'lora_alpha'."
        )
    for field, supported in _SUPPORTED_VALUES.items():
        if field in config and config[field] not in supported:
            raise UserError(
                f'{directory / CONFIG} has {field} = {short_repr(config[field])}, which is not '
                f'implemented; it must be {supported[0]!r}.'
            )
    rank, alpha = config['r'], config['lora_alpha']
    if find_mismatch(PositiveInt, rank) or find_mismatch(float, alpha) or alpha <= 0:
        raise UserError(
            f'{directory / CONFIG} has r = {short_repr(rank)} and lora_alpha = '
            f'{short_repr(alpha)}; they must be a whole number and a number, both positive.'
        )
    tensors = dict(_tensors(directory))
    leaves = {}
    for target in LINEARS:
        for leaf in MODULE_NAMES:
            name = tensor_name(target, leaf)
            own = [name.format(layer) for layer in range(model.num_layers)]
            if all(each in tensors for each in own):
                array = np.stack([tensors.pop(each).T for each in own])
                path = f'layers/{parent_module(target)}/{target}/{leaf}'
                leaves[path] = array if _is_vector(leaf) else array[:, None]
    if tensors:
        raise UserError(
            f'{directory / WEIGHTS} has a tensor {min(tensors)!r} that belongs to no linear layer '
            f'of {model.name}, or to one that is not adapted in all {model.num_layers} layers.'
        )
    down = DoRA.factors[0]
    ranks = {leaf.shape[-1] for path, leaf in leaves.items() if path.endswith(f'/{down}')}
    if ranks != {rank}:
        raise UserError(
            f'{directory / CONFIG} has r = {rank}, but the tensors in {WEIGHTS} have rank '
            f'{", ".join(map(str, sorted(ranks))) or "none"}.'
        )
    return leaves, alpha / rank ** (0.5 if config.get('use_rslora') else 1)


def _tensors(directory: pathlib.Path) -> Mapping[str, np.ndarray]:
    path = directory / WEIGHTS
    if not path.is_file():
        raise UserError(
            f'{directory} has no {WEIGHTS}; pickles (*.bin) are not read: save it as safetensors.'
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f'{path} is not a complete safetensors file ({error}).') from error
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def _is_vector(leaf: str) -> bool:
    return leaf in DoRA.kernel_dependent


def tensor_name(target: str, leaf: str) -> str:
    """Return the name of a tensor in PEFT's file, with {} in place of the layer index."""
    suffix = '' if _is_vector(leaf) else '.weight'
    return f'{_PREFIX}{huggingface_names.module_name(target)}.{MODULE_NAMES[leaf]}{suffix}'
