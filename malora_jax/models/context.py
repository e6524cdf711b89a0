"""Context: the information about the tokens of a batch that all layers share.

Dimension letters: B batch, T sequence, N = B · T tokens, G groups of tokens (tasks).
"""

import jax
from flax import struct


class Context(struct.PyTreeNode):
    """Information about the tokens that every layer receives.

    Attributes:
        positions: (B, T) int32, for the rotary embedding.
        segments: (B, T) int32; tokens see only tokens of their own segment.
        groups: (N, G) float32 one-hot group of each token, or None: see `LowRankExperts`.
        past_length: (B,) int32, as in `Past`; None if there are no earlier tokens.
        scale: () float32 factor of the adapter's update; None means that of the config.
        dropout: () float32 dropout rate; None means that of the config.
        keep: Whether keys and values of the tokens are returned.
        train: Whether dropout is on.
    """

    positions: jax.Array
    segments: jax.Array
    groups: jax.Array | None = None
    past_length: jax.Array | None = None
    scale: jax.Array | None = None
    dropout: jax.Array | None = None
    keep: bool = struct.field(pytree_node=False, default=False)
    train: bool = struct.field(pytree_node=False, default=False)
