"""Batched decoding with a KV cache: prefill a prompt into one slot, then decode all slots together.

A slot is a row of the KV cache. Each slot has its own length, so that a new request can start in
one while the others continue (continuous batching).

On CPU without a mesh, each layer has its weights and its KV cache in separate arrays. If they were
slices of arrays stacked over layers, XLA would copy each slice for every token, which would double
the time. On other devices XLA makes no such copy, and the layers stay stacked.

Dimension letters: B slots (rows), S KV cache length, T padded prompt length, W decode steps, V
vocabulary, A top log-probabilities; others as in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from malora_jax.distributed import sharding
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context
from malora_jax.models.decoder import Block, Decoder, KVCache, RMSNorm, logits, output_head
from malora_jax.models.sampling import SamplingParams, sample

# A: number of top log-probabilities that are returned with each new token.
NUM_TOP_LOGPROBS = 20


# Keys or values of all layers: one array with a leading layer axis, or a tuple with one per layer.
_Stack = Any


class DecodeState(struct.PyTreeNode):
    """Decoding state of all slots: KV cache, last tokens and settings.

    Attributes:
        k: (L, B, K, S, C) cached keys after RoPE. If each layer has a cache of its own (see the
            docstring of the module), a tuple of L arrays (B, K, S, C) instead.
        v: Cached values, in the same form as `k`.
        length: (B,) int32 number of cached tokens.
        token: (B,) int32 newest token; the next decode step adds it to the cache.
        num_new_tokens: (B,) int32 number of new tokens so far.
        max_new_tokens: (B,) int32 maximum number of new tokens.
        active: (B,) bool, whether the slot is active: its request has not finished.
        wants_logprobs: (B,) bool, whether the request asks for the most probable tokens.
        sampling: Sampling settings of each slot.
    """

    k: _Stack
    v: _Stack
    length: jax.Array
    token: jax.Array
    num_new_tokens: jax.Array
    max_new_tokens: jax.Array
    active: jax.Array
    wants_logprobs: jax.Array
    sampling: SamplingParams

    @property
    def cache_length(self) -> int:
        """KV cache length S, in tokens per slot."""
        return jax.tree.leaves(self.k)[0].shape[-2]


class SlotRequest(struct.PyTreeNode):
    """Settings of a request that is prefilled into a slot; all are scalars.

    Attributes:
        slot: int32 index of the slot.
        max_new_tokens: int32 maximum number of new tokens.
        wants_logprobs: bool, whether the request asks for the most probable tokens.
        sampling: Sampling settings.
    """

    slot: jax.Array
    max_new_tokens: jax.Array
    wants_logprobs: jax.Array
    sampling: SamplingParams


class SampledTokens(struct.PyTreeNode):
    """Sampled tokens with their log-probabilities.

    Log-probabilities are those at temperature 1, without top-k or top-p. The shapes below are those
    that `decode` returns, for B slots and W decode steps. `prefill` samples a single token, so its
    result lacks the axes B and W. A is the number of most probable tokens.

    Attributes:
        token: (B, W) int32 token ids.
        log_probability: (B, W) float32 log-probabilities of the tokens, in nats.
        top_tokens: (B, W, A) int32 ids of the most probable tokens; zeros if no slot asks for them.
        top_log_probability: (B, W, A) float32 log-probabilities of `top_tokens`, in nats.
    """

    token: jax.Array
    log_probability: jax.Array
    top_tokens: jax.Array
    top_log_probability: jax.Array


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
    shape = (num_slots, config.num_kv_heads, cache_length, config.head_width)

    def cache() -> _Stack:
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
        k=cache(),
        v=cache(),
        length=numbers(),
        token=numbers(),
        num_new_tokens=numbers(),
        max_new_tokens=numbers(),
        active=jnp.zeros(num_slots, bool),
        wants_logprobs=jnp.zeros(num_slots, bool),
        sampling=sampling,
    )


@functools.partial(jax.jit, static_argnums=1)
def grow_cache(state: DecodeState, cache_length: int) -> DecodeState:
    """Return the state with its KV cache padded to `cache_length` tokens per slot."""

    def wider(cache: jax.Array) -> jax.Array:
        return jnp.pad(
            cache, [(0, 0)] * (cache.ndim - 2) + [(0, cache_length - state.cache_length), (0, 0)]
        )

    return state.replace(k=jax.tree.map(wider, state.k), v=jax.tree.map(wider, state.v))


def unstack_layers(config: ModelConfig, variables: Any) -> list[dict[str, Any]]:
    """Split the decoder's variables, which are stacked over layers, into one tree per layer.

    On CPU these are views into the stacked arrays and take no memory.
    """
    stacks = {name: tree['layers'] for name, tree in variables.items() if 'layers' in tree}
    arrays = jax.tree.map(np.asarray, stacks)
    return [
        jax.tree.map(lambda array, layer=layer: jax.device_put(array[layer]), arrays)
        for layer in range(config.num_layers)
    ]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    model: Decoder,
    variables: Any,
    state: DecodeState,
    tokens_T: jax.Array,
    length: jax.Array,
    request: SlotRequest,
    end_ids: jax.Array,
) -> tuple[DecodeState, SampledTokens]:
    """Prefill a prompt into a slot, and sample the first new token.

    The prompt overwrites what the slot contained before.

    Args:
        model: Decoder.
        variables: Collections of the decoder.
        state: State of all slots; its buffers are donated.
        tokens_T: int32 prompt, padded on the right; T ≤ S.
        length: () int32 length of the prompt without padding.
        request: Slot and settings of the request.
        end_ids: int32 ids of end tokens.

    Returns:
        The new state; and the sampled token, as `SampledTokens` without leading axes.
    """
    T = tokens_T.shape[0]
    segments_1T = (jnp.arange(T) < length).astype(jnp.int32)[None]
    outputs: Any = model.apply(
        variables, tokens_T[None], jnp.arange(T)[None], segments_1T, return_kv=True
    )
    hidden_1TD, new_kv = outputs

    def update_slot(cache: _Stack, new_L1KTC: jax.Array) -> _Stack:
        if not isinstance(cache, tuple):
            return jax.lax.dynamic_update_slice_in_dim(cache, new_L1KTC, request.slot, axis=1)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(own, new_1KTC, request.slot, axis=0)
            for own, new_1KTC in zip(cache, new_L1KTC, strict=True)
        )

    last_1D = jax.lax.dynamic_index_in_dim(hidden_1TD, length - 1, axis=1, keepdims=False)
    sampling_1 = jax.tree.map(lambda x: x[None], request.sampling)
    first, one = jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32)
    sampled = _sample_next(model, variables, last_1D, sampling_1, first, request.wants_logprobs)
    active = (sampled.token != end_ids).all(axis=-1, keepdims=True) & (request.max_new_tokens > one)

    def put(array_B: jax.Array, value: Any) -> jax.Array:
        return array_B.at[request.slot].set(value)

    state = state.replace(
        k=update_slot(state.k, new_kv[0]),
        v=update_slot(state.v, new_kv[1]),
        length=put(state.length, length),
        token=put(state.token, sampled.token[0]),
        num_new_tokens=put(state.num_new_tokens, 1),
        max_new_tokens=put(state.max_new_tokens, request.max_new_tokens),
        active=put(state.active, active[0]),
        wants_logprobs=put(state.wants_logprobs, request.wants_logprobs),
        sampling=jax.tree.map(put, state.sampling, request.sampling),
    )
    return state, sharding.replicate(jax.tree.map(lambda x: x[0], sampled))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode(
    model: Decoder,
    max_steps: int,
    variables: Any,
    layers: Any,
    state: DecodeState,
    end_ids: jax.Array,
) -> tuple[DecodeState, SampledTokens, jax.Array]:
    """Run up to `max_steps` decode steps for all active slots, until none is active.

    Args:
        model: Decoder.
        max_steps: Maximum number W of decode steps.
        variables: Collections of the decoder.
        layers: Variables of each layer (see `unstack_layers`), if the KV cache has one array per
            layer; None to scan over the stacked `variables`.
        state: State of all slots; its buffers are donated.
        end_ids: int32 ids of end tokens.

    Returns:
        The new state; the sampled tokens, with leading axes (B, W); and a (B,) int32 array, the
        number n of new tokens of each slot. Only the first n of a slot's W entries are valid.
    """
    B, A = state.token.shape[0], _num_top_logprobs(model)
    out = SampledTokens(
        jnp.zeros((max_steps, B), jnp.int32),
        jnp.zeros((max_steps, B), jnp.float32),
        jnp.zeros((max_steps, B, A), jnp.int32),
        jnp.zeros((max_steps, B, A), jnp.float32),
    )
    before_B = state.num_new_tokens

    def unfinished(loop: tuple[jax.Array, DecodeState, SampledTokens]) -> jax.Array:
        return (loop[0] < max_steps) & loop[1].active.any()

    def decode_step(
        loop: tuple[jax.Array, DecodeState, SampledTokens],
    ) -> tuple[jax.Array, DecodeState, SampledTokens]:
        step, state, out = loop
        hidden_BD, k, v = _forward_step(model, variables, layers, state)
        sampled = _sample_next(
            model,
            variables,
            hidden_BD,
            state.sampling,
            state.num_new_tokens,
            state.wants_logprobs & state.active,
        )
        more_B = state.num_new_tokens + state.active
        ended_B = (sampled.token[:, None] == end_ids[None]).any(axis=1)
        state = state.replace(
            k=k,
            v=v,
            length=state.length + state.active,
            token=jnp.where(state.active, sampled.token, state.token),
            num_new_tokens=more_B,
            active=state.active & ~ended_B & (more_B < state.max_new_tokens),
        )
        return step + 1, state, jax.tree.map(lambda o, c: o.at[step].set(c), out, sampled)

    _, state, out = jax.lax.while_loop(unfinished, decode_step, (jnp.int32(0), state, out))
    # Replicated, because every process reads the results of all slots.
    state = state.replace(
        active=sharding.replicate(state.active),
        wants_logprobs=sharding.replicate(state.wants_logprobs),
    )
    out = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
    return state, *sharding.replicate((out, state.num_new_tokens - before_B))


def _num_top_logprobs(model: Decoder) -> int:
    return min(NUM_TOP_LOGPROBS, model.config.vocab_size)


def _forward_step(
    model: Decoder, variables: Any, layers: Any, state: DecodeState
) -> tuple[jax.Array, _Stack, _Stack]:
    """Run the model on each slot's newest token.

    Inactive slots are computed as well, which writes a useless entry into their KV cache. The entry
    is never read: either it lies beyond the slot's length, or the next prompt overwrites the slot
    first.

    Returns:
        The hidden states (B, D), and the cached keys and values including those of the token.
    """
    config, B = model.config, state.token.shape[0]
    positions_B1, ones_B1 = state.length[:, None], jnp.ones((B, 1), jnp.int32)
    row_B, position_B = jnp.arange(B), jnp.minimum(state.length, state.cache_length - 1)
    if layers is None:
        past = KVCache(state.k, state.v, state.length)
        outputs: Any = model.apply(
            variables, state.token[:, None], positions_B1, ones_B1, past=past
        )
        hidden_B1D, new_kv = outputs
        k, v = (
            cache.at[:, row_B, :, position_B].set(new_LBK1C[..., 0, :].swapaxes(0, 1))
            for cache, new_LBK1C in zip((state.k, state.v), new_kv, strict=True)
        )
        return hidden_B1D[:, 0], k, v
    params, context = variables['params'], Context(positions_B1, ones_B1, None, state.length)
    block, norm = Block(config, model.adapter), RMSNorm(config)
    x_BD: Any = params['embedding'][state.token]
    caches = []
    for layer, *layer_kv in zip(layers, state.k, state.v, strict=True):
        outputs = block.apply(layer, x_BD, context, tuple(layer_kv))
        x_BD, new_kv = outputs
        caches.append(
            cache_BKSC.at[row_B, :, position_B].set(new_BK1C[:, :, 0])
            for cache_BKSC, new_BK1C in zip(layer_kv, new_kv, strict=True)
        )
    k, v = zip(*caches, strict=True)
    x_BD = norm.apply({'params': params['final_norm']}, x_BD)
    return x_BD, k, v


def _sample_next(
    model: Decoder,
    variables: Any,
    hidden_BD: jax.Array,
    sampling: SamplingParams,
    index_B: jax.Array,
    wants_logprobs: jax.Array,
) -> SampledTokens:
    """Sample the next token of each slot from the model's hidden states.

    `index_B` is the index of the new token in its answer; it selects the token's random numbers.
    The most probable tokens are computed for all slots if any entry of `wants_logprobs` is True.
    """
    logits_BV = logits(hidden_BD, output_head(model.config, variables['params']))
    token_B = sample(logits_BV, sampling, index_B)
    log_total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    own_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
    count = _num_top_logprobs(model)

    def most_probable() -> tuple[jax.Array, jax.Array]:
        values_BA, tokens_BA = jax.lax.top_k(logits_BV, count)
        return tokens_BA, values_BA - log_total_B1

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = (token_B.shape[0], count)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    top_tokens_BA, top_log_BA = jax.lax.cond(wants_logprobs.any(), most_probable, nothing)
    return SampledTokens(token_B, (own_B1 - log_total_B1)[:, 0], top_tokens_BA, top_log_BA)
