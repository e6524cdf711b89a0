"""Rows in which texts are written: prompts are read into them, and tokens are added to all at once.

Each row has its own length, so that a text can begin in one while others go on.

On CPU each layer has weights, keys and values in arrays of its own, and reads them where they lie:
cut out of the stack of all layers, they would be copied for every token, which takes as long as
all the rest. Elsewhere the compiler needs no copy, and the layers stay stacked.

Dimension letters: B rows, S places of a row, T places of a prompt, W new tokens, V vocabulary, A
alternatives; others as in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from malora_jax.distributed import rules
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context
from malora_jax.models.decoder import Block, Decoder, Past, RMSNorm, head, logits
from malora_jax.models.sampling import Draws, sample

# A: how many of the most probable tokens are told with each that is chosen.
ALTERNATIVES = 20


# What each layer has of something, stacked or apart.
_Stack = Any


class Rows(struct.PyTreeNode):
    """The state of all rows.

    Attributes:
        k, v: keys and values of the tokens so far, (L, B, K, S, C), or L arrays (B, K, S, C).
        length: (B,) int32, how many these are.
        token: (B,) int32, the token that was chosen last; it is not among them yet.
        chosen: (B,) int32, how many tokens were chosen since the prompt.
        limit: (B,) int32, how many may be.
        writes: (B,) bool, whether more are to be chosen.
        tells: (B,) bool, whether alternatives are wanted.
        draws: how tokens are chosen.
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
        """S."""
        return jax.tree.leaves(self.k)[0].shape[-2]


class Order(struct.PyTreeNode):
    """What is to be written in one row; scalars.

    Attributes:
        row: which.
        limit: the most tokens.
        tells: whether alternatives are wanted.
        draws: how tokens are chosen.
    """

    row: jax.Array
    limit: jax.Array
    tells: jax.Array
    draws: Draws


class Chosen(struct.PyTreeNode):
    """Tokens, with how probable the model finds them, whatever the temperature.

    Attributes:
        token: (…) int32.
        log_probability: (…) float32, in nats.
        others: (…, A) int32, the most probable tokens, if they are wanted.
        others_log_probability: (…, A) float32.
    """

    token: jax.Array
    log_probability: jax.Array
    others: jax.Array
    others_log_probability: jax.Array


def empty_rows(config: ModelConfig, rows: int, places: int, apart: bool) -> Rows:
    """Rows in which nothing is written yet.

    Args:
        config: of the model.
        rows: B.
        places: S.
        apart: whether each layer has arrays of its own.
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
    """The rows with more places."""

    def wider(cache: jax.Array) -> jax.Array:
        return jnp.pad(cache, [(0, 0)] * (cache.ndim - 2) + [(0, places - rows.places), (0, 0)])

    return rows.replace(k=jax.tree.map(wider, rows.k), v=jax.tree.map(wider, rows.v))


def by_layer(config: ModelConfig, variables: Any) -> list[dict[str, Any]]:
    """The collections of each layer, in arrays of their own.

    On CPU these are views: the memory is that of the stacks.
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
    """Reads a prompt into a row, in place of what was in it, and chooses the first token.

    Args:
        model: the decoder.
        variables: its collections.
        rows: their memory is used for the result.
        tokens_T: the prompt, filled up on the right; T ≤ S.
        length: () int32, tokens of the prompt.
        order: what is to be written.
        ends: tokens after which nothing is written.

    Returns:
        The rows, and the token, without a leading dimension.
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
    return rows, rules.replicate(jax.tree.map(lambda x: x[0], chosen))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def write(
    model: Decoder, count: int, variables: Any, layers: Any, rows: Rows, ends: jax.Array
) -> tuple[Rows, Chosen, jax.Array]:
    """Chooses up to `count` more tokens in each row that writes.

    Args:
        model: the decoder.
        count: W.
        variables: its collections.
        layers: those of each layer, see `by_layer`; None = as they lie in `variables`.
        rows: their memory is used for the result.
        ends: tokens after which nothing is written.

    Returns:
        The rows; the tokens, (B, W) and more; and how many of each row count, (B,).
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
    # Whole on every device: each process looks at all of them.
    rows = rows.replace(writes=rules.replicate(rows.writes), tells=rules.replicate(rows.tells))
    out = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
    return rows, *rules.replicate((out, rows.chosen - before_B))


def _alternatives(model: Decoder) -> int:
    return min(ALTERNATIVES, model.config.vocab_size)


def _append(
    model: Decoder, variables: Any, layers: Any, rows: Rows
) -> tuple[jax.Array, _Stack, _Stack]:
    """Runs the model on each row's last token; its output, and keys and values with it.

    In a row that does not write, what is put behind its end is overwritten or never looked at.
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
    """The next token of each row, from the model's output."""
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
