"""Names of the tensors in Hugging Face and GGUF files for each leaf of the decoder's `params`.

Files hold one tensor per layer, with outputs before inputs. In `params`, layers are stacked, and
kernels have inputs before outputs.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from malora_jax.adapters.trees import named_leaves
from malora_jax.models.config import ModelConfig
from malora_jax.models.decoder import Decoder, abstract_variables

Format = Literal['huggingface', 'gguf']

# Name of each module of `Decoder` in `transformers` and in llama.cpp; {} is the index of the layer.
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
    """Leaf of the decoder's `params`, and the tensors in a weight file from which it is loaded.

    Attributes:
        path: Path of the leaf, with slashes.
        shape: Shape of the leaf, with the layer axis first if it is stacked.
        dtype: Dtype of the leaf.
        tensor_names: Names of the tensors in the file. A leaf of the layers has one tensor per
            layer; any other leaf, such as the embedding, has a single tensor.
        transposed: Whether the tensors in the file are transposed relative to the leaf.
    """

    path: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    tensor_names: list[str]
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of each of the tensors in the file."""
        shape = self.shape[1:] if self.path.startswith('layers/') else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def row_axis(self) -> int:
        """Axis of the leaf that corresponds to the first axis (rows) of its tensors."""
        if self.transposed:
            return len(self.shape) - 1
        return 1 if self.path.startswith('layers/') else 0


def leaves(config: ModelConfig, file_format: Format) -> list[Leaf]:
    """Return all leaves of the decoder's `params` before quantization, in tree order."""
    config = dataclasses.replace(config, quantize='')
    params = nn.unbox(abstract_variables(Decoder(config))['params'])
    return [
        Leaf(path, leaf.shape, leaf.dtype, _names(path, config, file_format), 'kernel' in path)
        for path, leaf in named_leaves(params)
    ]


def weight_name(module: str, file_format: Format) -> str:
    """Return the tensor name of a module's weight.

    Args:
        module: Path of the module in `Decoder`, such as 'layers/mlp/up'.
        file_format: Format of the weight file.

    Returns:
        The name; for modules in a layer, it contains {} in place of the layer's index.
    """
    return _MODULES[module][file_format == 'gguf'] + '.weight'


def _names(path: str, config: ModelConfig, file_format: Format) -> list[str]:
    module = path if path in _MODULES else path.rsplit('/', 1)[0]
    name = _MODULES[module][file_format == 'gguf'] + (
        '.bias' if path.endswith('bias') else '.weight'
    )
    layers = config.num_layers if path.startswith('layers/') else 1
    return [name.format(layer) for layer in range(layers)]
