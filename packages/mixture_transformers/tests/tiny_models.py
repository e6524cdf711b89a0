"""Tiny random models with mixtures, and exports of them."""

import pathlib
from typing import Any

import safetensors.torch
import torch
import transformers

import mixture_transformers
from mixture_transformers.schema import MIXTURE_LEAVES, TARGETS

FAMILIES = ('Llama', 'Mistral', 'Qwen2', 'Qwen3')
VOCABULARY = 160


def mixture_block(**fields: Any) -> dict[str, Any]:
    """Return a valid block `mixture` of config.json, with some fields replaced."""
    return {
        'version': 1,
        'method': 'malora',
        'num_experts': 5,
        'rank': 3,
        'top_k': 2,
        'scale': 1.5,
        'gates': 'softmax',
        'targets': list(TARGETS),
        'router_parts': 1,
        'base': {'name': '/nowhere/base', 'fingerprint': '0' * 32},
    } | fields


def gates_object(**settings: Any) -> dict[str, Any]:
    """Return a valid field `gates` with all settings, some of which are replaced."""
    return {
        'kind': 'softmax',
        'scores': 'softmax',
        'factor': 1,
        'has_offset': False,
        'offset_in_gates': False,
        'num_residual_experts': 0,
        'num_up_experts': 0,
    } | settings


# Gates with settings that a kind alone does not have.
MORE_GATES = {
    'sigmoid': gates_object(kind='renormalized', scores='sigmoid', factor=2, has_offset=True),
    'threshold': gates_object(kind='renormalized', scores='threshold', has_offset=True),
    'magnitude': gates_object(kind='equal', scores='magnitude', factor=2, has_offset=True),
    'offset': gates_object(has_offset=True),
    'offset in gates': gates_object(
        scores='sigmoid', factor=2, has_offset=True, offset_in_gates=True
    ),
    'residual': gates_object(kind='renormalized', num_residual_experts=4),
    'second router': gates_object(kind='renormalized', num_up_experts=3),
}


def tiny_config(family: str, block: dict[str, Any], **fields: Any) -> Any:
    """Return a configuration with two layers."""
    return getattr(mixture_transformers, f'Mixture{family}Config')(
        mixture=block,
        **{
            'vocab_size': VOCABULARY,
            'hidden_size': 32,
            'intermediate_size': 48,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'head_dim': 8,
            'max_position_embeddings': 128,
            'tie_word_embeddings': False,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'pad_token_id': 0,
        }
        | fields,
    )


def random_model(family: str, block: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Return a model in evaluation mode whose parameters, also biases and norms, are random."""
    config = tiny_config(family, block or mixture_block(), **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(len(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if 'norm' in name else 0.0
            width = 1.0 if name.endswith(('.router.weight', '.router.offset.weight')) else 0.25
            parameter.copy_(around + width * torch.randn(parameter.shape, generator=generator))
    return model


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids without special tokens."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def base_of(model: Any) -> Any:
    """Return the base model, a class of transformers with copies of the base weights."""
    content = model.config.to_dict()
    del content['mixture'], content['architectures']
    family = content.pop('model_type').removeprefix('mixture_')
    config = transformers.AutoConfig.for_model(family, **content)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    tensors = {
        name.replace('_proj.base.', '_proj.'): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(MIXTURE_LEAVES)
    }
    base.load_state_dict(tensors)
    return base


def write_base(model: Any, directory: pathlib.Path, **options: Any) -> None:
    """Write the base model, and set the base in the model's block `mixture` to it."""
    base = base_of(model)
    base.save_pretrained(directory, **options)
    fingerprint = mixture_transformers.base_fingerprint(
        base.state_dict(), base.config.tie_word_embeddings
    )
    model.config.mixture['base'] = {'name': str(directory), 'fingerprint': fingerprint}


def write_adapter(model: Any, directory: pathlib.Path) -> None:
    """Write an export that holds the adapter alone."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name.endswith(MIXTURE_LEAVES)
    }
    safetensors.torch.save_file(tensors, directory / 'mixture.safetensors')
