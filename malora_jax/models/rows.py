"""Batched decoding with a KV cache: prefill a prompt into one slot, then decode all slots together.

A slot is a row of the KV cache. Each slot has its own length, so that a new request can start in
one while the others continue (continuous batching).

On CPU without a mesh, each layer has its weights and its KV cache in separate arrays. If they were
slices of arrays stacked over layers, XLA would copy each slice for every token, which would double
the time. On other devices XLA makes no such copy, and the layers stay stacked.

Dimension letters: B slots (rows), S KV cache length, T padded prompt length, W decode steps, V
vocabulary, A alternatives; others as in `decoder`.
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
from malora_jax.models.decoder import Block, Decoder, Past, RMSNorm, head, logits
from malora_jax.models.sampling import Draws, sample

# A: number of most probable tokens that are returned with each new token.
ALTERNATIVES = 20


# Keys or values of all layers: one array with a leading layer axis, or a tuple with one per layer.
_Stack = Any


class Rows(struct.PyTreeNode):
    """Decoding state of all slots: KV cache, last tokens and settings.

    Attributes:
        k: (L, B, K, S, C) cached keys after RoPE, or a tuple of L arrays (B, K, S, C).
        v: Cached values, in the same form as `k`.
        length: (B,) int32 number of cached tokens.
        token: (B,) int32 newest token; the next decode step adds it to the cache.
        chosen: (B,) int32 number of new tokens so far.
        limit: (B,) int32 maximum number of new tokens.
        writes: (B,) bool, whether the slot is active: its request has not finished.
        tells: (B,) bool, whether the request asks for the most probable tokens.
        draws: Sampling settings of each slot.
    """

    k: _Stack
    v: _Stack
    length: jax.Array
    token: jax.Array
    chosen: jax.Array
    limit: jax.Array
    writes: jax.Array
    tells: jax.Array
    draws: Draws

    @property
    def places(self) -> int:
        """KV cache length S, in tokens per slot."""
        return jax.tree.leaves(self.k)[0].shape[-2]


class Order(struct.PyTreeNode):
    """Settings of a request that is prefilled into a slot; all are scalars.

    Attributes:
        row: int32 index of the slot.
        limit: int32 maximum number of new tokens.
        tells: bool, whether the request asks for the most probable tokens.
        draws: Sampling settings.
    """

    row: jax.Array
    limit: jax.Array
    tells: jax.Array
    draws: Draws


class Chosen(struct.PyTreeNode):
    """New tokens with log-probabilities, at temperature 1 and without top-k or top-p.

    Attributes:
        token: (…) int32 token ids.
        log_probability: (…) float32 log-probabilities of the tokens, in nats.
        others: (…, A) int32 ids of the most probable tokens; zeros if no slot asks for them.
        others_log_probability: (…, A) float32 log-probabilities of `others`, in nats.
    """

    token: jax.Array
    log_probability: jax.Array
    others: jax.Array
    others_log_probability: jax.Array


def empty_rows(config: ModelConfig, rows: int, places: int, apart: bool) -> Rows:
    """Allocate the KV cache and the state of slots that are all inactive.

    Args:
        config: Configuration of the model.
        rows: Number B of slots.
        places: KV cache length S, in tokens per slot.
        apart: Whether each layer's cache is an array of its own, instead of one stacked array.
    """
    shape = (rows, config.num_kv_heads, places, config.head_width)

    def cache() -> _Stack:
        if apart:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), config.dtype)

    def numbers() -> jax.Array:
        return jnp.zeros(rows, jnp.int32)

    draws = Draws(
        jax.random.split(jax.random.key(0), rows),
        jnp.zeros(rows, jnp.float32),
        numbers(),
        jnp.ones(rows, jnp.float32),
    )
    return Rows(
        k=cache(),
        v=cache(),
        length=numbers(),
        token=numbers(),
        chosen=numbers(),
        limit=numbers(),
        writes=jnp.zeros(rows, bool),
        tells=jnp.zeros(rows, bool),
        draws=draws,
    )


@functools.partial(jax.jit, static_argnums=1)
def grown(rows: Rows, places: int) -> Rows:
    """Return the state with its KV cache padded to `places` tokens per slot."""

    def wider(cache: jax.Array) -> jax.Array:
        return jnp.pad(cache, [(0, 0)] * (cache.ndim - 2) + [(0, places - rows.places), (0, 0)])

    return rows.replace(k=jax.tree.map(wider, rows.k), v=jax.tree.map(wider, rows.v))


def by_layer(config: ModelConfig, variables: Any) -> list[dict[str, Any]]:
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
def read(
    model: Decoder,
    variables: Any,
    rows: Rows,
    tokens_T: jax.Array,
    length: jax.Array,
    order: Order,
    ends: jax.Array,
) -> tuple[Rows, Chosen]:
    """Prefill a prompt into a slot, which it overwrites, and sample the first new token.

    Args:
        model: Decoder.
        variables: Collections of the decoder.
        rows: State of all slots; its buffers are donated.
        tokens_T: int32 prompt, padded on the right; T ≤ S.
        length: () int32 length of the prompt without padding.
        order: Slot and settings of the request.
        ends: int32 ids of end tokens.

    Returns:
        The new state; and the token, with leaves of `Chosen` that have no leading axis.
    """
    T = tokens_T.shape[0]
    inside_1T = (jnp.arange(T) < length).astype(jnp.int32)[None]
    outputs: Any = model.apply(variables, tokens_T[None], jnp.arange(T)[None], inside_1T, keep=True)
    hidden_1TD, new = outputs

    def copied(cache: _Stack, new_L1KTC: jax.Array) -> _Stack:
        if not isinstance(cache, tuple):
            return jax.lax.dynamic_update_slice_in_dim(cache, new_L1KTC, order.row, axis=1)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(own, new_1KTC, order.row, axis=0)
            for own, new_1KTC in zip(cache, new_L1KTC, strict=True)
        )

    last_1D = jax.lax.dynamic_index_in_dim(hidden_1TD, length - 1, axis=1, keepdims=False)
    draws_1 = jax.tree.map(lambda x: x[None], order.draws)
    first, one = jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32)
    chosen = _choose(model, variables, last_1D, draws_1, first, order.tells)
    writes = (chosen.token != ends).all(axis=-1, keepdims=True) & (order.limit > one)

    def put(array_B: jax.Array, value: Any) -> jax.Array:
        return array_B.at[order.row].set(value)

    rows = rows.replace(
        k=copied(rows.k, new[0]),
        v=copied(rows.v, new[1]),
        length=put(rows.length, length),
        token=put(rows.token, chosen.token[0]),
        chosen=put(rows.chosen, 1),
        limit=put(rows.limit, order.limit),
        writes=put(rows.writes, writes[0]),
        tells=put(rows.tells, order.tells),
        draws=jax.tree.map(put, rows.draws, order.draws),
    )
    return rows, sharding.replicate(jax.tree.map(lambda x: x[0], chosen))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def write(
    model: Decoder, count: int, variables: Any, layers: Any, rows: Rows, ends: jax.Array
) -> tuple[Rows, Chosen, jax.Array]:
    """Run up to `count` decode steps for all active slots, until none is active.

    Args:
        model: Decoder.
        count: Maximum number W of decode steps.
        variables: Collections of the decoder.
        layers: Variables of each layer (see `by_layer`), if the KV cache has one array per layer;
            None to scan over the stacked `variables`.
        rows: State of all slots; its buffers are donated.
        ends: int32 ids of end tokens.

    Returns:
        The new state; the tokens, with leading axes (B, W); and the number (B,) of valid tokens of
        each slot, which come first.
    """
    B, A = rows.token.shape[0], _alternatives(model)
    out = Chosen(
        jnp.zeros((count, B), jnp.int32),
        jnp.zeros((count, B), jnp.float32),
        jnp.zeros((count, B, A), jnp.int32),
        jnp.zeros((count, B, A), jnp.float32),
    )
    before_B = rows.chosen

    def unfinished(loop: tuple[jax.Array, Rows, Chosen]) -> jax.Array:
        return (loop[0] < count) & loop[1].writes.any()

    def one_more(loop: tuple[jax.Array, Rows, Chosen]) -> tuple[jax.Array, Rows, Chosen]:
        step, rows, out = loop
        hidden_BD, k, v = _append(model, variables, layers, rows)
        chosen = _choose(
            model, variables, hidden_BD, rows.draws, rows.chosen, rows.tells & rows.writes
        )
        more_B = rows.chosen + rows.writes
        ended_B = (chosen.token[:, None] == ends[None]).any(axis=1)
        rows = rows.replace(
            k=k,
            v=v,
            length=rows.length + rows.writes,
            token=jnp.where(rows.writes, chosen.token, rows.token),
            chosen=more_B,
            writes=rows.writes & ~ended_B & (more_B < rows.limit),
        )
        return step + 1, rows, jax.tree.map(lambda o, c: o.at[step].set(c), out, chosen)

    _, rows, out = jax.lax.while_loop(unfinished, one_more, (jnp.int32(0), rows, out))
    # Replicated, because every process reads all of them.
    rows = rows.replace(
        writes=sharding.replicate(rows.writes), tells=sharding.replicate(rows.tells)
    )
    out = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
    return rows, *sharding.replicate((out, rows.chosen - before_B))


def _alternatives(model: Decoder) -> int:
    return min(ALTERNATIVES, model.config.vocab_size)


def _append(
    model: Decoder, variables: Any, layers: Any, rows: Rows
) -> tuple[jax.Array, _Stack, _Stack]:
    """Run the model on each slot's newest token.

    Inactive slots are computed as well. The entry that this adds to their cache does no harm, since
    it is beyond their length, or their cache is not read any more.

    Returns:
        The hidden states (B, D), and the cached keys and values including those of the token.
    """
    config, B = model.config, rows.token.shape[0]
    positions_B1, ones_B1 = rows.length[:, None], jnp.ones((B, 1), jnp.int32)
    row_B, place_B = jnp.arange(B), jnp.minimum(rows.length, rows.places - 1)
    if layers is None:
        past = Past(rows.k, rows.v, rows.length)
        outputs: Any = model.apply(variables, rows.token[:, None], positions_B1, ones_B1, past=past)
        hidden_B1D, new = outputs
        k, v = (
            cache.at[:, row_B, :, place_B].set(new_LBK1C[..., 0, :].swapaxes(0, 1))
            for cache, new_LBK1C in zip((rows.k, rows.v), new, strict=True)
        )
        return hidden_B1D[:, 0], k, v
    params, context = variables['params'], Context(positions_B1, ones_B1, None, rows.length)
    block, norm = Block(config, model.adapter), RMSNorm(config)
    x_BD: Any = params['embedding'][rows.token]
    caches = []
    for layer, *own in zip(layers, rows.k, rows.v, strict=True):
        outputs = block.apply(layer, x_BD, context, tuple(own))
        x_BD, new = outputs
        caches.append(
            cache_BKSC.at[row_B, :, place_B].set(new_BK1C[:, :, 0])
            for cache_BKSC, new_BK1C in zip(own, new, strict=True)
        )
    k, v = zip(*caches, strict=True)
    x_BD = norm.apply({'params': params['final_norm']}, x_BD)
    return x_BD, k, v


def _choose(
    model: Decoder,
    variables: Any,
    hidden_BD: jax.Array,
    draws: Draws,
    place_B: jax.Array,
    tells: jax.Array,
) -> Chosen:
    """Sample the next token of each slot from the model's hidden states.

    `place_B` is the index of that token in its answer. The most probable tokens are computed for
    all slots if any of `tells` is set.
    """
    logits_BV = logits(hidden_BD, head(model.config, variables['params']))
    token_B = sample(logits_BV, draws, place_B)
    log_total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    own_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
    count = _alternatives(model)

    def most_probable() -> tuple[jax.Array, jax.Array]:
        values_BA, tokens_BA = jax.lax.top_k(logits_BV, count)
        return tokens_BA, values_BA - log_total_B1

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = (token_B.shape[0], count)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    others_BA, others_log_BA = jax.lax.cond(tells.any(), most_probable, nothing)
    return Chosen(token_B, (own_B1 - log_total_B1)[:, 0], others_BA, others_log_BA)
