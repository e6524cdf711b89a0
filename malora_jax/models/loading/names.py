"""Where each tensor of a weight file goes in the decoder's tree: one table for both formats.

Files hold a tensor for each layer, outputs before inputs; the tree stacks layers, inputs before
outputs.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from malora_jax.adapters.trees import named_leaves
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder, abstract_variables

Format = Literal['huggingface', 'gguf']

# Our module, its name in `transformers`, and llama.cpp's; {} is the layer.
_MODULES = {
    'embedding': ('model.embed_tokens', 'token_embd'),
    'head': ('lm_head', 'output'),
    'final_norm': ('model.norm', 'output_norm'),
    'layers/attention_norm': ('model.layers.{}.input_layernorm', 'blk.{}.attn_norm'),
    'layers/attention/q': ('model.layers.{}.self_attn.q_proj', 'blk.{}.attn_q'),
    'layers/attention/k': ('model.layers.{}.self_attn.k_proj', 'blk.{}.attn_k'),
    'layers/attention/v': ('model.layers.{}.self_attn.v_proj', 'blk.{}.attn_v'),
    'layers/attention/o': ('model.layers.{}.self_attn.o_proj', 'blk.{}.attn_output'),
    'layers/attention/q_norm': ('model.layers.{}.self_attn.q_norm', 'blk.{}.attn_q_norm'),
    'layers/attention/k_norm': ('model.layers.{}.self_attn.k_norm', 'blk.{}.attn_k_norm'),
    'layers/mlp_norm': ('model.layers.{}.post_attention_layernorm', 'blk.{}.ffn_norm'),
    'layers/mlp/gate': ('model.layers.{}.mlp.gate_proj', 'blk.{}.ffn_gate'),
    'layers/mlp/up': ('model.layers.{}.mlp.up_proj', 'blk.{}.ffn_up'),
    'layers/mlp/down': ('model.layers.{}.mlp.down_proj', 'blk.{}.ffn_down'),
}


class Leaf(NamedTuple):
    """A leaf of the tree and the tensors that it is made of.

    Attributes:
        path: in the tree, with slashes.
        shape: of the leaf, layers first if it has any.
        dtype: of the leaf.
        names: of the tensors, one a layer, or just one.
        transposed: whether the tensors are, against the leaf.
    """

    path: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    names: list[str]
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each tensor in the file."""
        shape = self.shape[1:] if self.path.startswith('layers/') else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def row_axis(self) -> int:
        """The axis of the leaf along which its tensors' rows lie."""
        if self.transposed:
            return len(self.shape) - 1
        return 1 if self.path.startswith('layers/') else 0


def leaves(config: ModelConfig, file_format: Format) -> list[Leaf]:
    """All leaves of the decoder's `params` before kernels are quantised, in tree order."""
    config = dataclasses.replace(config, quantize='')
    params = nn.unbox(abstract_variables(Decoder(config))['params'])
    return [
        Leaf(path, leaf.shape, leaf.dtype, _names(path, config, file_format), 'kernel' in path)
        for path, leaf in named_leaves(params)
    ]


def name(module: str, file_format: Format) -> str:
    """The name of a module's weight; {} is the layer, if it is in one."""
    return _MODULES[module][file_format == 'gguf'] + '.weight'


def _names(path: str, config: ModelConfig, file_format: Format) -> list[str]:
    module = path if path in _MODULES else path.rsplit('/', 1)[0]
    name = _MODULES[module][file_format == 'gguf'] + (
        '.bias' if path.endswith('bias') else '.weight'
    )
    layers = config.num_layers if path.startswith('layers/') else 1
    return [name.format(layer) for layer in range(layers)]
