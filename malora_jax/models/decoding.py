"""Batched decoding with a KV cache: a step adds a token to the text in each slot.

On CPU without a mesh, each layer has its weights and its KV cache in separate arrays. If they were
slices of arrays stacked over layers, XLA would copy each slice for every token, which would double
the time. On other devices XLA makes no such copy, and the layers stay stacked.

Dimension letters: B slots (rows), S KV cache length, W decode steps, A top log-probabilities;
others as in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.distributed import sharding
from malora_jax.models import attention
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context
from malora_jax.models.decode_state import DecodeState, Stack
from malora_jax.models.decoder import Block, Decoder, KVCache, RMSNorm
from malora_jax.models.next_token import SampledTokens, num_top_logprobs, sample_next


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
    B, A = state.token.shape[0], num_top_logprobs(model)
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
        sampled = sample_next(
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
    state = state.replace(active=sharding.replicate(state.active))
    out = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
    return state, *sharding.replicate((out, state.num_new_tokens - before_B))


def _forward_step(
    model: Decoder, variables: Any, layers: Any, state: DecodeState
) -> tuple[jax.Array, Stack, Stack]:
    """Run the model on each slot's newest token.

    Inactive slots are computed as well, which writes a useless entry into their KV cache. The entry
    is never read: either it lies beyond the slot's length, or the next prompt overwrites the slot
    first.

    Returns:
        The hidden states (B, D), and the cached keys and values including those of the token.
    """
    config, B = model.config, state.token.shape[0]
    positions_B1, ones_B1 = state.length[:, None], jnp.ones((B, 1), jnp.int32)
    if layers is None:
        past = KVCache(state.k, state.v, state.length)
        outputs: Any = model.apply(
            variables,
            state.token[:, None],
            positions_B1,
            ones_B1,
            past=past,
            adapter_BT=state.adapter[:, None],
        )
        hidden_B1D, (new_k, new_v) = outputs
        update = jax.vmap(attention.update_cache, (0, 0, 0, 0, None))
        return hidden_B1D[:, 0], *update(state.k, state.v, new_k, new_v, state.length)
    params = variables['params']
    context = Context(
        positions_B1, ones_B1, past_length=state.length, adapter=state.adapter, update_cache=True
    )
    block, norm = Block(config, None, model.bank), RMSNorm(config)
    x_BD: Any = params['embedding'][state.token]
    caches = []
    for layer, *layer_kv in zip(layers, state.k, state.v, strict=True):
        outputs = block.apply(layer, x_BD, context, tuple(layer_kv))
        x_BD, new_kv = outputs
        caches.append(new_kv)
    k, v = zip(*caches, strict=True)
    x_BD = norm.apply({'params': params['final_norm']}, x_BD)
    return x_BD, k, v
