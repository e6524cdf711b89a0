"""The frozen base model: a Llama-type decoder with adapted linears, scanned over its layers.

Linears run over tokens flattened to (N, D), N = B · T: weight gradients then contract one axis,
which is twice as fast on CPU.

Dimension letters: B batch, T sequence, N = B · T tokens, D model, F hidden of the MLP, H query
heads, K key/value heads, C head width, V vocabulary, L layers, G groups of tokens (tasks), S places
of earlier tokens.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from malora_jax.adapters import AdapterConfig
from malora_jax.distributed import rules
from malora_jax.models import attention
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context
from malora_jax.models.linear import AdaptedPart, Outputs, parameter


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps everything but gathered kernels, which are a constraint with a name."""
    is_name = primitive.name == 'name' and params['name'] == rules.GATHERED
    return not is_name and primitive.name != 'sharding_constraint'


# What the backward pass has of a layer besides its input, by how much of it is computed anew:
# nothing; what is cheap, between the linears; everything.
REMAT = {
    'none': _all_but_gathered,
    'light': jax.checkpoint_policies.save_only_these_names(
        *('q', 'k', 'v', 'attended', 'o', 'gate', 'up', 'down', 'mask', 'rank', 'router', 'lengths')
    ),
    'full': jax.checkpoint_policies.nothing_saveable,
}


class Past(struct.PyTreeNode):
    """Keys and values of earlier tokens.

    Attributes:
        k, v: (L, B, K, S, C); of one layer, without L.
        length: (B,) int32, how many of the S places are filled in each row.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


# Keys and values of some tokens, (B, K, T, C) for each layer.
KeysValues = tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
    """x / rms(x) · scale, in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """(N, D), each token normalised."""
        ones = nn.initializers.ones_init()
        scale_D = parameter(self, 'scale', ones, ('norm',), x_ND.shape[-1:], 'float32')
        x32_ND = x_ND.astype(jnp.float32)
        mean_square_N1 = jnp.mean(x32_ND * x32_ND, axis=-1, keepdims=True)
        normal_ND = x32_ND * jax.lax.rsqrt(mean_square_N1 + self.config.norm_epsilon)
        return (normal_ND * scale_D[None]).astype(x_ND.dtype)


class Attention(AdaptedPart):
    """Grouped-query attention with rotary embeddings."""

    @nn.compact
    def __call__(
        self, x_ND: jax.Array, context: Context, past: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """(N, D), and the keys and values of the tokens if the context says so."""
        config, (B, T) = self.config, context.positions.shape

        def outputs(heads: int, axis: str) -> Outputs:
            return Outputs(heads * config.head_width, axis, config.qkv_bias)

        keys = outputs(config.num_kv_heads, 'kv_heads')
        queries = outputs(config.num_heads, 'heads')
        q, k, v = (
            x_NF.reshape(B, T, -1, config.head_width)
            for x_NF in self.linears(x_ND, 'embed', context, q=queries, k=keys, v=keys)
        )

        def place(name: str, x_BTHC: jax.Array) -> jax.Array:
            if config.qk_norm:
                x_MC = x_BTHC.reshape(-1, config.head_width)
                x_BTHC = RMSNorm(config, name=f'{name}_norm')(x_MC).reshape(x_BTHC.shape)
            theta, scaling = config.rope_theta, config.rope_scaling
            return attention.rotate(x_BTHC, context.positions, theta, scaling)

        q_BTHC, k_BTKC, v_BTKC = place('q', q), place('k', k), v
        new = None
        if context.keep or past is not None:
            new = (k_BTKC.transpose(0, 2, 1, 3), v_BTKC.transpose(0, 2, 1, 3))
        if past is None or new is None:
            out_BTHC = attention.attend(q_BTHC, k_BTKC, v_BTKC, context.segments)
        else:
            length_B = cast(jax.Array, context.past_length)
            out_BTHC = attention.attend_past(q_BTHC, *new, *past, length_B)
        out_NA = out_BTHC.reshape(B * T, -1)
        (out_ND,) = self.linears(out_NA, 'heads', context, o=Outputs(config.width, 'embed'))
        return out_ND, new


class MLP(AdaptedPart):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    @nn.compact
    def __call__(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """(N, D)."""
        wide, narrow = Outputs(self.config.hidden, 'mlp'), Outputs(self.config.width, 'embed')
        gate_NF, up_NF = self.linears(x_ND, 'embed', context, gate=wide, up=wide)
        (down_ND,) = self.linears(nn.silu(gate_NF) * up_NF, 'mlp', context, down=narrow)
        return down_ND


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and beside a residual."""

    config: ModelConfig
    adapter: AdapterConfig | None

    @nn.compact
    def __call__(
        self, x_ND: jax.Array, context: Context, past: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """The residual stream after this layer; and what `Attention` returns besides."""
        attend = Attention(self.config, self.adapter, name='attention')
        update_ND, new = attend(RMSNorm(self.config, name='attention_norm')(x_ND), context, past)
        x_ND += update_ND
        mlp = MLP(self.config, self.adapter, name='mlp')
        x_ND += mlp(RMSNorm(self.config, name='mlp_norm')(x_ND), context)
        return rules.constrain(x_ND, 'rows', 'features'), new


class Decoder(nn.Module):
    """The language model up to its last hidden state; `head` and `logits` give the rest.

    Attributes:
        config: the base model.
        adapter: what is added to its linears; None for the base model alone.
        remat: which of a layer's activations are computed anew in the backward pass; one of
            `REMAT`.
    """

    config: ModelConfig
    adapter: AdapterConfig | None = None
    remat: str = 'none'

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        groups_NG: jax.Array | None = None,
        past: Past | None = None,
        keep: bool = False,
        train: bool = False,
        scale: jax.Array | None = None,
        dropout: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Runs the decoder.

        Args:
            tokens_BT: int32 token ids.
            positions_BT: int32 position of each token in its example.
            segments_BT: int32; tokens see only tokens of their own segment. 0 is padding.
            groups_NG: see `LowRankExperts`.
            past: what goes before the tokens of each row; they are all of its segment.
            keep: whether keys and values are returned; with a past they always are.
            train: whether dropout is on; needs an rng named `dropout`.
            scale: Factor of the adapter's update, (), float32; None means that of the config.
            dropout: Dropout rate, (), float32; None means that of the config. If the config has
                no dropout, there is none, whatever the rate.

        Returns:
            Hidden states (B, T, D) after the last norm, and keys and values of the tokens,
            (L, B, K, T, C) each, or None.
        """
        config = self.config
        shape, start = (config.vocab_size, config.width), nn.initializers.normal(0.02)
        axes = ('vocab', 'embed')
        embedding_VD = parameter(self, 'embedding', start, axes, shape, config.dtype)
        if not config.tied:  # Used by whoever wants logits: see `head`.
            parameter(self, 'head', start, axes, shape, config.dtype)

        B, T = tokens_BT.shape
        length_B = None if past is None else past.length
        context = Context(
            positions_BT, segments_BT, groups_NG, length_B, scale, dropout, keep=keep, train=train
        )
        x_ND = embedding_VD[tokens_BT].reshape(B * T, config.width)
        x_ND = rules.constrain(x_ND, 'rows', 'features')
        x_ND, new = self._layers(x_ND, context, None if past is None else (past.k, past.v))
        x_ND = RMSNorm(config, name='final_norm')(x_ND)
        return x_ND.reshape(B, T, config.width), new

    def _layers(self, x_ND: jax.Array, context: Context, past: Any) -> tuple[jax.Array, Any]:
        block = Block
        # On a mesh not even 'none' keeps the kernels that a layer has gathered.
        if self.remat != 'none' or rules.is_mesh_set():
            # Within a scan nothing can be merged with the first pass: no need to prevent it.
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
        stack = nn.scan(
            block,
            variable_axes={name: 0 for name in ('params', 'adapter', 'adapter_frozen', 'routing')},
            split_rngs={'params': True, 'dropout': True},
            in_axes=(nn.broadcast, 0),
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        return stack(self.config, self.adapter, name='layers')(x_ND, context, past)


@functools.cache
def abstract_variables(model: Decoder) -> Any:
    """Shapes of the decoder's collections, with their logical axis names (boxed)."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(lambda one: model.init(jax.random.key(0), one, one, one), one)


def head(config: ModelConfig, params: Any) -> jax.Array:
    """The output projection (V, D): the embedding where the two are tied."""
    return rules.gather(params['embedding' if config.tied else 'head'], ('vocab', 'embed'))


def logits(hidden_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    """(N, V) float32. The head stays as it lies in memory; its transpose is never made."""
    return jax.lax.dot_general(
        hidden_ND, head_VD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
