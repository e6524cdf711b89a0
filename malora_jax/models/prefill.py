"""Prefill: prompts are packed into one row, and their keys and values go into free slots.

Dimension letters: B slots (rows), S KV cache length, R prompts, T their tokens with padding; others
as in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from malora_jax.distributed import sharding
from malora_jax.models.decode_state import DecodeState, Stack
from malora_jax.models.decoder import Decoder, KeysValues
from malora_jax.models.next_token import SampledTokens, sample_next
from malora_jax.models.sampling import SamplingParams


class SlotRequests(struct.PyTreeNode):
    """Requests that are prefilled into slots; each array has one entry per request.

    Attributes:
        slot: (R,) int32 index of the slot. Entries beyond the last slot are ignored; so the number
            R does not depend on the number of requests, and fewer shapes are compiled.
        length: (R,) int32 length of the prompt; 0 for an ignored entry.
        max_new_tokens: (R,) int32 maximum number of new tokens.
        wants_logprobs: (R,) bool, whether the request asks for the most probable tokens.
        adapter: (R,) int32 index of the request's adapter.
        sampling: Sampling settings of each request.
    """

    slot: jax.Array
    length: jax.Array
    max_new_tokens: jax.Array
    wants_logprobs: jax.Array
    adapter: jax.Array
    sampling: SamplingParams


def prefill(
    model: Decoder,
    variables: Any,
    state: DecodeState,
    tokens_T: jax.Array,
    requests: SlotRequests,
    end_ids: jax.Array,
) -> tuple[DecodeState, SampledTokens]:
    """Prefill prompts into slots, and sample the first new token of each.

    The prompts are packed into one row. Each overwrites what its slot contained before.

    Args:
        model: Decoder.
        variables: Collections of the decoder.
        state: State of all slots; its buffers are donated.
        tokens_T: int32 prompts, one after another, padded on the right.
        requests: Slots and settings of the requests, in the order of the prompts; ignored entries
            come last.
        end_ids: int32 ids of end tokens.

    Returns:
        The new state; and the sampled tokens, as `SampledTokens` with a leading axis R.
    """
    # Two programs, because the first one, which takes long to compile, does not depend on the
    # number of slots and the length of the KV cache.
    new_kv, sampled = _run_prompts(model, variables, tokens_T, requests)
    return _fill_slots(state, new_kv, sampled.token, requests, end_ids), sampled


@functools.partial(jax.jit, static_argnums=0)
def _run_prompts(
    model: Decoder, variables: Any, tokens_T: jax.Array, requests: SlotRequests
) -> tuple[KeysValues, SampledTokens]:
    """Return the keys and values of packed prompts, and the first new token of each."""
    request_T, position_T, is_padding_T = _unpack(requests, len(tokens_T))
    outputs: Any = model.apply(
        variables,
        tokens_T[None],
        position_T[None],
        jnp.where(is_padding_T, 0, request_T + 1)[None],
        return_kv=True,
        adapter_BT=requests.adapter[request_T][None],
    )
    hidden_1TD, new_kv = outputs
    last_RD = hidden_1TD[0, jnp.maximum(jnp.cumsum(requests.length) - 1, 0)]
    first_R = jnp.zeros_like(requests.length)
    sampled = sample_next(
        model, variables, last_RD, requests.sampling, first_R, requests.wants_logprobs
    )
    return new_kv, sharding.replicate(sampled)


@functools.partial(jax.jit, donate_argnums=0)
def _fill_slots(
    state: DecodeState,
    new_kv: KeysValues,
    token_R: jax.Array,
    requests: SlotRequests,
    end_ids: jax.Array,
) -> DecodeState:
    """Write the keys and values of packed prompts, and the requests, into their slots."""
    request_T, position_T, is_padding_T = _unpack(requests, new_kv[1].shape[-2])
    # The keys and values of padding are dropped.
    slot_T = jnp.where(is_padding_T, len(state.token), requests.slot[request_T])
    write = functools.partial(_write_prompts, slot_T=slot_T, position_T=position_T)
    k: Stack
    v: Stack
    if isinstance(state.k, tuple):
        k, v = zip(*map(write, state.k, state.v, *new_kv), strict=True)
    else:
        k, v = jax.vmap(write)(state.k, state.v, *new_kv)
    is_end_R = (token_R[:, None] == end_ids[None]).any(axis=1)

    def put(array_B: jax.Array, value_R: Any) -> jax.Array:
        return array_B.at[requests.slot].set(value_R, mode='drop')

    return state.replace(
        k=k,
        v=v,
        length=put(state.length, requests.length),
        token=put(state.token, token_R),
        num_new_tokens=put(state.num_new_tokens, 1),
        max_new_tokens=put(state.max_new_tokens, requests.max_new_tokens),
        active=put(state.active, ~is_end_R & (requests.max_new_tokens > 1)),
        wants_logprobs=put(state.wants_logprobs, requests.wants_logprobs),
        adapter=put(state.adapter, requests.adapter),
        sampling=jax.tree.map(put, state.sampling, requests.sampling),
    )


def _unpack(requests: SlotRequests, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the request of each token, its position in the prompt, and whether it is padding."""
    index_T, end_R = jnp.arange(length), jnp.cumsum(requests.length)
    request_T = jnp.minimum(jnp.searchsorted(end_R, index_T, side='right'), len(end_R) - 1)
    position_T = index_T - (end_R - requests.length)[request_T]
    return request_T, position_T, index_T >= end_R[-1]


def _write_prompts(
    k_BKCS: jax.Array,
    v_BKSC: jax.Array,
    new_k_1KCT: jax.Array,
    new_v_1KTC: jax.Array,
    *,
    slot_T: jax.Array,
    position_T: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Write the keys and values of prompts into the KV cache of one layer."""
    k_BKCS = k_BKCS.at[slot_T, :, :, position_T].set(new_k_1KCT[0].transpose(2, 0, 1), mode='drop')
    v_BKSC = v_BKSC.at[slot_T, :, position_T].set(new_v_1KTC[0].transpose(1, 0, 2), mode='drop')
    return k_BKCS, v_BKSC
