"""Metadata that a layer receives with a batch: positions, segments and tasks of its tokens.

Dimension letters: B batch, T sequence, N = B · T tokens, G groups of tokens (tasks).
"""

import jax
from flax import struct


class Context(struct.PyTreeNode):
    """Metadata of a batch's tokens, the same for every layer except for `num_experts`.

    Attributes:
        positions: (B, T) int32 positions for RoPE.
        segments: (B, T) int32 segment (packed example) of each token; tokens attend only within
            their segment. 0 is padding.
        groups: (N, G) float32 one-hot group (task) of each token, zero for padding. If given,
            `LowRankExperts` records routing statistics for each group.
        past_length: (B,) int32 number of tokens in the KV cache; None without a cache.
        scale: () float32 factor of the adapter's update, which replaces `AdapterConfig.scale`;
            None keeps the value of the config.
        dropout: () float32 dropout rate, which replaces `AdapterConfig.dropout`; None keeps the
            value of the config.
        adapter: (N,) int32 index of each token's adapter in an `AdapterBank`; None without a bank.
        num_experts: () int32 number of experts of the layer; None if all layers have the same.
        attention: Attention backend, one of `attention_backends.BACKENDS`.
        return_kv: Whether layers return the keys and values of the tokens, for the KV cache.
        update_cache: Whether layers write the key and value of one new token in each row into the
            KV cache, and return the caches.
        train: Whether dropout is on.
    """

    positions: jax.Array
    segments: jax.Array
    groups: jax.Array | None = None
    past_length: jax.Array | None = None
    scale: jax.Array | None = None
    dropout: jax.Array | None = None
    adapter: jax.Array | None = None
    num_experts: jax.Array | None = None
    attention: str = struct.field(pytree_node=False, default='auto')
    return_kv: bool = struct.field(pytree_node=False, default=False)
    update_cache: bool = struct.field(pytree_node=False, default=False)
    train: bool = struct.field(pytree_node=False, default=False)
