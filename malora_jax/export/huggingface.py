"""Export for `transformers`: the base model, alone or with the adapter merged into its weights."""

import pathlib
from typing import Any

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.export import merge, tokenizer_files
from malora_jax.export.directory import atomic_directory
from malora_jax.export.safetensors_files import write_shards
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import ModelConfig
from malora_jax.models.loading.params import to_huggingface

WEIGHTS = 'model.safetensors'


def write_merged(trained: TrainedModel, output: pathlib.Path) -> None:
    """Write the merged model: config, weights (safetensors), tokenizer and generation settings.

    Args:
        trained: Trained model of method LoRA, rsLoRA, DoRA or AsyLoRA.
        output: Directory to create.

    Raises:
        UserError: The method cannot be merged, the update is zero, or the directory exists and is
            not empty.
    """
    _write(trained, merge.merged_params(trained), output)


def write_base(trained: TrainedModel, output: pathlib.Path) -> None:
    """Write the base model alone, with the chat template and the end token of the training.

    Args:
        trained: Trained model. Quantized kernels are dequantized.
        output: Directory to create.

    Raises:
        UserError: The directory exists and is not empty.
    """
    params = merge.dequantized_params(trained.model.config, trained.base.params)
    _write(trained, params, output)


def _write(trained: TrainedModel, params: Any, output: pathlib.Path) -> None:
    config = trained.model.config
    tensors = to_huggingface(config, params)
    with atomic_directory(output) as temporary:
        write_shards(temporary / WEIGHTS, tensors)
        files.write_json(
            temporary / 'config.json',
            config_json(config) | tokenizer_files.special_token_ids(trained),
        )
        tokenizer_files.write_tokenizer_files(temporary, trained)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Return the content of config.json for `transformers`, without special token ids.

    Args:
        config: Configuration of the base model.

    Raises:
        UserError: The model has both biases and norms of q and k, which none of the architectures
            for export (Llama, Qwen2, Qwen3) has.
    """
    if config.qkv_bias and config.qk_norm:
        raise UserError(
            f'{config.name} has both biases and norms of q and k, which none of the architectures '
            'for export (Llama, Qwen2, Qwen3) has.'
        )
    name = 'Qwen3' if config.qk_norm else 'Qwen2' if config.qkv_bias else 'Llama'
    content = {
        'architectures': [f'{name}ForCausalLM'],
        'model_type': name.lower(),
        'vocab_size': config.vocab_size,
        'hidden_size': config.width,
        'intermediate_size': config.hidden,
        'num_hidden_layers': config.num_layers,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_width,
        'max_position_embeddings': config.context,
        'rope_theta': config.rope_theta,
        'rms_norm_eps': config.norm_epsilon,
        'hidden_act': 'silu',
        'tie_word_embeddings': config.tied,
        'torch_dtype': config.dtype,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        content['rope_scaling'] = {
            'rope_type': 'llama3',
            'factor': scaling.factor,
            'low_freq_factor': scaling.low_frequency_factor,
            'high_freq_factor': scaling.high_frequency_factor,
            'original_max_position_embeddings': scaling.original_context,
        }
    return content
