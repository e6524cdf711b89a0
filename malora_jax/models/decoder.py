"""Decoder: a Llama-style transformer with adapted linears, as a scan over its layers.

The linears run on tokens flattened to (N, D), N = B · T, so that weight gradients contract a single
axis, which is twice as fast on CPU.

Dimension letters: B batch, T sequence, N = B · T tokens, D model, F hidden of the MLP, H query
heads, K key/value heads, C head width, V vocabulary, L layers, G groups of tokens (tasks), S KV
cache length.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.bank import AdapterBank
from malora_jax.adapters.low_rank import RECORDED_COLLECTIONS
from malora_jax.adapters.trees import ADAPTER_COLLECTIONS
from malora_jax.distributed import sharding
from malora_jax.models import attention, attention_backends
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context
from malora_jax.models.linear import AdaptedSublayer, LinearSpec, parameter


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Rematerialization policy that saves all intermediates except gathered parameters.

    On a mesh with FSDP, `sharding.gather` collects the shards of a parameter before its use. The
    backward pass gathers them again, since saving whole parameters would need too much memory.
    `sharding.gather` consists of a sharding constraint and `checkpoint_name`, so this policy saves
    the results of neither.
    """
    is_name = primitive.name == 'name' and params['name'] == sharding.GATHERED
    return not is_name and primitive.name != 'sharding_constraint'


# Rematerialization (gradient checkpointing) policies: the activations that a layer saves for the
# backward pass, besides its input. 'none' saves all of them. 'light' recomputes only the cheap
# operations between the linears. 'full' recomputes the whole layer.
REMAT_POLICIES = {
    'none': _all_but_gathered,
    'light': jax.checkpoint_policies.save_only_these_names(
        *('q', 'k', 'v', 'attended', 'o', 'gate', 'up', 'down', 'rank', 'router', 'lengths')
    ),
    'full': jax.checkpoint_policies.nothing_saveable,
}


class KVCache(struct.PyTreeNode):
    """KV cache: keys and values of the tokens that earlier calls have processed.

    Attributes:
        k: (L, B, K, C, S) keys after RoPE.
        v: (L, B, K, S, C) values.
        length: (B,) int32 number of cached tokens in each row, at most S.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array


# Keys (B, K, C, T) and values (B, K, T, C) of some tokens in a layer; in the decoder with a leading
# axis L. Keys are transposed because XLA computes their products with queries faster on CPU.
KeysValues = tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
    """RMSNorm: x / rms(x) · scale, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """Normalize each token; return (N, D) in the dtype of x."""
        ones = nn.initializers.ones_init()
        scale_D = parameter(self, 'scale', ones, ('norm',), x_ND.shape[-1:], 'float32')
        x32_ND = x_ND.astype(jnp.float32)
        mean_square_N1 = jnp.mean(x32_ND * x32_ND, axis=-1, keepdims=True)
        normal_ND = x32_ND * jax.lax.rsqrt(mean_square_N1 + self.config.norm_epsilon)
        return (normal_ND * scale_D[None]).astype(x_ND.dtype)


class Attention(AdaptedSublayer):
    """Grouped-query attention with rotary position embeddings (RoPE)."""

    @nn.compact
    def __call__(
        self, x_ND: jax.Array, context: Context, past: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """Apply attention to the tokens of a batch.

        Args:
            x_ND: Normalized residual stream.
            context: Metadata of the tokens.
            past: Cached keys (B, K, C, S) and values (B, K, S, C) of this layer, or None.

        Returns:
            The update (N, D) of the residual stream; and the keys (B, K, C, T) and values (B, K, T,
            C) of the tokens, or None if `past` is None and `context.return_kv` is False. With
            `context.update_cache`, the new caches instead.
        """
        config, (B, T) = self.config, context.positions.shape

        def spec(heads: int, axis: str) -> LinearSpec:
            return LinearSpec(heads * config.head_width, axis, config.qkv_bias)

        kv_spec = spec(config.num_kv_heads, 'kv_heads')
        q_spec = spec(config.num_heads, 'heads')
        q, k, v = (
            x_NF.reshape(B, T, -1, config.head_width)
            for x_NF in self.apply_linears(x_ND, 'embed', context, q=q_spec, k=kv_spec, v=kv_spec)
        )

        def norm_and_rotate(name: str, x_BTHC: jax.Array) -> jax.Array:
            if config.qk_norm:
                x_MC = x_BTHC.reshape(-1, config.head_width)
                x_BTHC = RMSNorm(config, name=f'{name}_norm')(x_MC).reshape(x_BTHC.shape)
            theta, scaling = config.rope_theta, config.rope_scaling
            return attention.apply_rope(x_BTHC, context.positions, theta, scaling)

        q_BTHC, k_BTKC, v_BTKC = norm_and_rotate('q', q), norm_and_rotate('k', k), v
        new_kv = None
        if context.return_kv or past is not None:
            new_kv = (k_BTKC.transpose(0, 2, 3, 1), v_BTKC.transpose(0, 2, 1, 3))
        if past is None or new_kv is None:
            out_BTHC = attention_backends.attend(
                context.attention, q_BTHC, k_BTKC, v_BTKC, context.segments
            )
        else:
            length_B = cast(jax.Array, context.past_length)
            if context.update_cache:
                new_kv = attention.update_cache(*past, *new_kv, length_B)
                out_BTHC = attention.attend_cache(q_BTHC, *new_kv, length_B)
            else:
                out_BTHC = attention.attend_past(q_BTHC, *new_kv, *past, length_B)
        out_NA = out_BTHC.reshape(B * T, -1)
        (out_ND,) = self.apply_linears(
            out_NA, 'heads', context, o=LinearSpec(config.width, 'embed')
        )
        return out_ND, new_kv


class MLP(AdaptedSublayer):
    """SwiGLU MLP: down(silu(gate(x)) · up(x))."""

    @nn.compact
    def __call__(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Return the update (N, D) of the residual stream."""
        wide, narrow = LinearSpec(self.config.hidden, 'mlp'), LinearSpec(self.config.width, 'embed')
        gate_NF, up_NF = self.apply_linears(x_ND, 'embed', context, gate=wide, up=wide)
        (down_ND,) = self.apply_linears(nn.silu(gate_NF) * up_NF, 'mlp', context, down=narrow)
        return down_ND


class Block(nn.Module):
    """One pre-norm transformer layer: attention and MLP, each with a residual connection."""

    config: ModelConfig
    adapter: AdapterConfig | None
    bank: AdapterBank | None = None

    @nn.compact
    def __call__(
        self,
        x_ND: jax.Array,
        context: Context,
        past: KeysValues | None,
        num_experts: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Apply the layer to the tokens of a batch.

        Args:
            x_ND: Residual stream before the layer.
            context: Metadata of the tokens.
            past: Cached keys (B, K, C, S) and values (B, K, S, C) of this layer, or None.
            num_experts: () int32 number of experts of this layer; None for `adapter.num_experts`.

        Returns:
            The residual stream (N, D) after the layer; and the keys and values of the tokens, or
            None, as `Attention` returns them.
        """
        context = context.replace(num_experts=num_experts)
        attend = Attention(self.config, self.adapter, self.bank, name='attention')
        update_ND, new_kv = attend(RMSNorm(self.config, name='attention_norm')(x_ND), context, past)
        x_ND += update_ND
        mlp = MLP(self.config, self.adapter, self.bank, name='mlp')
        x_ND += mlp(RMSNorm(self.config, name='mlp_norm')(x_ND), context)
        return sharding.constrain(x_ND, 'rows', 'features'), new_kv


class Decoder(nn.Module):
    """Decoder-only language model without the output head: it returns the final hidden states.

    The function `logits` computes logits from the hidden states. The base model's weights are in
    the collection `params`. The adapter's parameters are in the collections `adapter` (trained) and
    `adapter_frozen`.

    Attributes:
        config: Configuration of the base model.
        adapter: Settings of the adapters on the linears; None for the base model alone, or with a
            bank.
        remat: Rematerialization (gradient checkpointing) policy of the layers, a key of
            `REMAT_POLICIES`.
        attention: Attention backend, one of `attention_backends.BACKENDS`. Attention over a KV
            cache uses XLA in any case.
        bank: Several adapters for text generation, of which each token uses one or none: see
            `adapter_bank.bank_adapters`. None without a bank.

    Example:
        Logits of a randomly initialized model:

            model = Decoder(preset('tiny'))
            tokens = jnp.array([[1, 2, 3]])
            inputs = tokens, jnp.arange(3)[None], jnp.ones_like(tokens)
            variables = nn.unbox(model.init(jax.random.key(0), *inputs))
            hidden_BTD, _ = model.apply(variables, *inputs)
            logits_TV = logits(hidden_BTD[0], output_head(model.config, variables['params']))
    """

    config: ModelConfig
    adapter: AdapterConfig | None = None
    remat: str = 'none'
    attention: str = 'auto'
    bank: AdapterBank | None = None

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        groups_NG: jax.Array | None = None,
        past: KVCache | None = None,
        return_kv: bool = False,
        train: bool = False,
        scale: jax.Array | None = None,
        dropout: jax.Array | None = None,
        adapter_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Compute the hidden states of a batch of tokens.

        Args:
            tokens_BT: int32 token ids.
            positions_BT: int32 position of each token in its example.
            segments_BT: int32 segment (packed example) of each token; tokens attend only within
                their segment. 0 is padding.
            groups_NG: float32 one-hot group (task) of each token, zero for padding. If given,
                statistics of the tokens are sown in `RECORDED_COLLECTIONS`.
            past: KV cache of the tokens that precede `tokens_BT` in each row. With a cache,
                segments are ignored: the tokens of a row attend to the row's whole cache and,
                causally, to each other.
            return_kv: Whether keys and values are returned; with `past` they always are.
            train: Whether dropout is on; it needs a PRNG stream named `dropout`. The stream
                `selection` is for sampled experts, as in `LowRankExperts`.
            scale: () float32 factor of the adapter's update, which replaces `AdapterConfig.scale`;
                None keeps the value of the config.
            dropout: () float32 dropout rate, which replaces `AdapterConfig.dropout`; None keeps the
                value of the config. It has no effect if `AdapterConfig.dropout` is zero.
            adapter_BT: int32 index of each token's adapter in the bank.

        Returns:
            Hidden states (B, T, D) after the final norm; and the keys and values of the tokens,
            (L, B, K, T, C) each, or None.
        """
        config = self.config
        shape, initializer = (config.vocab_size, config.width), nn.initializers.normal(0.02)
        axes = ('vocab', 'embed')
        embedding_VD = parameter(self, 'embedding', initializer, axes, shape, config.dtype)
        if not config.tied:
            # Created here, but used by callers that compute logits: see `output_head`.
            parameter(self, 'head', initializer, axes, shape, config.dtype)

        B, T = tokens_BT.shape
        length_B = None if past is None else past.length
        context = Context(
            positions_BT,
            segments_BT,
            groups_NG,
            length_B,
            scale,
            dropout,
            None if adapter_BT is None else adapter_BT.reshape(B * T),
            attention=self.attention,
            return_kv=return_kv,
            train=train,
        )
        x_ND = embedding_VD[tokens_BT].reshape(B * T, config.width)
        x_ND = sharding.constrain(x_ND, 'rows', 'features')
        x_ND, new_kv = self._layers(x_ND, context, None if past is None else (past.k, past.v))
        x_ND = RMSNorm(config, name='final_norm')(x_ND)
        return x_ND.reshape(B, T, config.width), new_kv

    def _layers(self, x_ND: jax.Array, context: Context, past: Any) -> tuple[jax.Array, Any]:
        block = Block
        # On a mesh, even 'none' needs a policy, as the gathered kernels should not be saved.
        if self.remat != 'none' or sharding.is_mesh_set():
            # Within a scan, XLA cannot merge the recomputation with the forward pass, so it needs
            # no protection from common-subexpression elimination (CSE).
            block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        stack = nn.scan(
            block,
            variable_axes={
                name: 0 for name in ('params', *ADAPTER_COLLECTIONS, 'bank', *RECORDED_COLLECTIONS)
            },
            split_rngs={'params': True, 'dropout': True, 'selection': True},
            in_axes=(nn.broadcast, 0, 0),
            length=self.config.num_layers,
            # Otherwise Flax traces a layer once more, to look for outputs that all layers share.
            check_constancy_invariants=False,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        layers = stack(self.config, self.adapter, self.bank, name='layers')
        experts_L = None
        if self.adapter is not None and self.adapter.experts_per_layer:
            experts_L = jnp.asarray(self.adapter.layer_experts(self.config.num_layers))
        return layers(x_ND, context, past, experts_L)


@functools.cache
def abstract_variables(model: Decoder) -> Any:
    """Return the shapes of the decoder's variables, without computing them.

    Returns:
        Collections of `ShapeDtypeStruct`, boxed in `nn.LogicallyPartitioned` with the logical names
        of their axes; `flax.linen.unbox` removes the boxes.
    """
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(
        lambda one: model.init(jax.random.key(0), one, one, one, adapter_BT=one), one
    )


def output_head(config: ModelConfig, params: Any) -> jax.Array:
    """Return the matrix (V, D) of the output head; it is the embedding if the two are tied.

    Args:
        config: Configuration of the model.
        params: Collection `params` of the decoder.
    """
    return sharding.gather(params['embedding' if config.tied else 'head'], ('vocab', 'embed'))


def logits(hidden_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    """Return the logits (N, V) in float32.

    The product contracts the last axes, so that the head is not transposed in memory.

    Args:
        hidden_ND: Hidden states of the decoder.
        head_VD: Output head: see `output_head`.
    """
    return jax.lax.dot_general(
        hidden_ND, head_VD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
