"""State of the slots in which texts are decoded, with the KV cache.

A slot is a row of the KV cache. Each slot has its own length, so that a new request can start in
one while the others continue (continuous batching).

Dimension letters: B slots (rows), S KV cache length; others as in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from malora_jax.models.config import ModelConfig
from malora_jax.models.sampling import SamplingParams

# Keys or values of all layers: one array with a leading layer axis, or a tuple with one per layer.
Stack = Any


class DecodeState(struct.PyTreeNode):
    """Decoding state of all slots: KV cache, last tokens and settings.

    Attributes:
        k: (L, B, K, C, S) cached keys after RoPE. If each layer has a cache of its own (see
            `decoding`), a tuple of L arrays (B, K, C, S) instead.
        v: (L, B, K, S, C) cached values, or a tuple as for `k`.
        length: (B,) int32 number of cached tokens.
        token: (B,) int32 newest token; the next decode step adds it to the cache.
        num_new_tokens: (B,) int32 number of new tokens so far.
        max_new_tokens: (B,) int32 maximum number of new tokens.
        active: (B,) bool, whether the slot is active: its request has not finished.
        wants_logprobs: (B,) bool, whether the request asks for the most probable tokens.
        adapter: (B,) int32 index of the request's adapter, if the decoder has a bank of adapters.
        sampling: Sampling settings of each slot.
    """

    k: Stack
    v: Stack
    length: jax.Array
    token: jax.Array
    num_new_tokens: jax.Array
    max_new_tokens: jax.Array
    active: jax.Array
    wants_logprobs: jax.Array
    adapter: jax.Array
    sampling: SamplingParams

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of slots, and KV cache length S in tokens per slot."""
        return len(self.token), jax.tree.leaves(self.v)[0].shape[-2]


def init_decode_state(
    config: ModelConfig, num_slots: int, cache_length: int, per_layer: bool
) -> DecodeState:
    """Allocate the KV cache and the state of slots that are all inactive.

    Args:
        config: Configuration of the model.
        num_slots: Number B of slots.
        cache_length: KV cache length S, in tokens per slot.
        per_layer: Whether each layer's cache is an array of its own, instead of one stacked array.
    """
    heads, sizes = (num_slots, config.num_kv_heads), (cache_length, config.head_width)

    def cache(shape: tuple[int, ...]) -> Stack:
        if per_layer:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), config.dtype)

    def numbers() -> jax.Array:
        return jnp.zeros(num_slots, jnp.int32)

    sampling = SamplingParams(
        jax.random.split(jax.random.key(0), num_slots),
        jnp.zeros(num_slots, jnp.float32),
        numbers(),
        jnp.ones(num_slots, jnp.float32),
    )
    return DecodeState(
        k=cache((*heads, *reversed(sizes))),
        v=cache((*heads, *sizes)),
        length=numbers(),
        token=numbers(),
        num_new_tokens=numbers(),
        max_new_tokens=numbers(),
        active=jnp.zeros(num_slots, bool),
        wants_logprobs=jnp.zeros(num_slots, bool),
        adapter=numbers(),
        sampling=sampling,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def grow(config: ModelConfig, num_slots: int, cache_length: int, state: DecodeState) -> DecodeState:
    """Return the state with more slots, or with a longer KV cache.

    Args:
        config: Configuration of the model.
        num_slots: New number of slots, at least that of `state`.
        cache_length: New KV cache length in tokens per slot, at least that of `state`.
        state: State of the present slots, which keep their indices.
    """
    grown = init_decode_state(config, num_slots, cache_length, isinstance(state.k, tuple))
    return jax.tree.map(
        lambda new, old: new.at[tuple(slice(size) for size in old.shape)].set(old), grown, state
    )
