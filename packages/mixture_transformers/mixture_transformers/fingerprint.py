"""Fingerprint of a base model's weights, equal to that of malora_jax for the same weights.

malora_jax stacks the layers of a model along a leading axis and stores the transposes of the weight
matrices. Its fingerprint is a hash of the name, the shape and some evenly spaced values of each
stacked array. This module reads these values directly from the tensors of `transformers`.

Dimension letters: L layers, D inputs and F outputs of a linear layer, S samples.
"""

import hashlib
import math
import re
from collections.abc import Mapping

import torch

_SAMPLES_PER_LEAF = 1024
# Tensors of `transformers` by path in malora_jax. Tensors of kernels are transposed; {} is the
# index of the layer. A model has only some of the biases, norms and the head.
_NAMES = {
    'embedding': 'model.embed_tokens.weight',
    'final_norm/scale': 'model.norm.weight',
    'head': 'lm_head.weight',
    'layers/attention/k/bias': 'model.layers.{}.self_attn.k_proj.bias',
    'layers/attention/k/kernel': 'model.layers.{}.self_attn.k_proj.weight',
    'layers/attention/k_norm/scale': 'model.layers.{}.self_attn.k_norm.weight',
    'layers/attention/o/kernel': 'model.layers.{}.self_attn.o_proj.weight',
    'layers/attention/q/bias': 'model.layers.{}.self_attn.q_proj.bias',
    'layers/attention/q/kernel': 'model.layers.{}.self_attn.q_proj.weight',
    'layers/attention/q_norm/scale': 'model.layers.{}.self_attn.q_norm.weight',
    'layers/attention/v/bias': 'model.layers.{}.self_attn.v_proj.bias',
    'layers/attention/v/kernel': 'model.layers.{}.self_attn.v_proj.weight',
    'layers/attention_norm/scale': 'model.layers.{}.input_layernorm.weight',
    'layers/mlp/down/kernel': 'model.layers.{}.mlp.down_proj.weight',
    'layers/mlp/gate/kernel': 'model.layers.{}.mlp.gate_proj.weight',
    'layers/mlp/up/kernel': 'model.layers.{}.mlp.up_proj.weight',
    'layers/mlp_norm/scale': 'model.layers.{}.post_attention_layernorm.weight',
}


def base_fingerprint(tensors: Mapping[str, torch.Tensor], tie_word_embeddings: bool) -> str:
    """Return the fingerprint of a base model's weights, 32 hexadecimal digits.

    The same weights in float32 and in bfloat16 have the same fingerprint.

    Args:
        tensors: Tensors of a causal language model by name, such as its `state_dict()`.
        tie_word_embeddings: Whether the model uses its embedding as the output head. A tensor of
            the head is then ignored.

    Raises:
        ValueError: A layer lacks a tensor that the first layer has.
    """
    digest = hashlib.sha256()
    for path, name in _NAMES.items():
        if name.format(0) not in tensors or (path == 'head' and tie_word_embeddings):
            continue
        shape, samples_S = _sample_leaf(path, name, tensors)
        digest.update(f'{path} {shape}'.encode() + _to_bytes(samples_S.to(torch.bfloat16)))
    return digest.hexdigest()[:32]


def _sample_leaf(
    path: str, name: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[tuple[int, ...], torch.Tensor]:
    """Return the shape of an array in malora_jax and evenly spaced values of it, (S,)."""
    layers = [tensors[name]] if '{}' not in name else _layer_tensors(name, tensors)
    if path.endswith('/kernel'):
        layers = [layer_FD.T for layer_FD in layers]
    shape = (len(layers), *layers[0].shape)
    layer_S, *index = torch.unravel_index(_sample_positions(math.prod(shape)), shape)
    samples = [
        layer[tuple(axis_S[layer_S == number] for axis_S in index)]
        for number, layer in enumerate(layers)
    ]
    return shape if '{}' in name else shape[1:], torch.cat(samples)


def _layer_tensors(name: str, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return a tensor of every layer."""
    num_layers = len(
        {match[0] for key in tensors if (match := re.match(r'model\.layers\.\d+', key))}
    )
    names = [name.format(layer) for layer in range(num_layers)]
    missing = [each for each in names if each not in tensors]
    if missing:
        raise ValueError(f'The base model has no tensor {missing[0]!r}: export it again.')
    return [tensors[each] for each in names]


def _sample_positions(size: int) -> torch.Tensor:
    """Return the flat indices of the samples, as `np.linspace` with truncation gives them."""
    count = min(size, _SAMPLES_PER_LEAF)
    # torch.linspace rounds differently from np.linspace, which multiplies by one float64 step.
    step = (size - 1) / max(count - 1, 1)
    positions_S = (torch.arange(count, dtype=torch.float64) * step).to(torch.int64)
    positions_S[-1] = size - 1
    return positions_S


def _to_bytes(values_S: torch.Tensor) -> bytes:
    return bytes(values_S.cpu().view(torch.uint8).tolist())
