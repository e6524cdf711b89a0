"""Token dispatch: each token is computed only by its top-k experts, as in FastMoE.

The MALoRA paper reports times of this algorithm (FastMoE, He et al. 2021). A token has K slots, one
for each of its experts. Slots are sorted by expert. The input vectors are gathered in that order,
multiplied with the weights of their expert, weighted by the gates, and summed for each token. The
module `products` computes the same result by multiplying every token with all experts, which is
faster for experts of low rank. This module is for comparison.

The slots of each expert are padded to whole tiles, blocks of `_TILE` positions. Shapes therefore do
not depend on the routing, and no token is dropped. `SortedSlots` maps positions to tokens and
tokens to positions, so the forward and backward passes only gather vectors and never scatter them.

Dimension letters: N tokens, K experts of a token, E experts, D inputs, S subspace, R rank, F
outputs, M positions in the sorted order (slots and padding), I tiles, J positions of a tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from malora_jax.adapters.routers import Routing

# Positions per tile. The slots of each expert are padded to a multiple of this number.
_TILE = 128


class SortedSlots(NamedTuple):
    """Sorted order of the N · K slots, where a slot is a pair of a token and one of its experts.

    The slots are sorted by expert. A position is an index into this order, from 0 to M - 1. A tile
    is a block of `_TILE` consecutive positions with slots of a single expert. Padding fills the
    last tile of each expert.

    Attributes:
        token: (M,) int32, index of the token whose slot is at each position; N at padding.
        position: (N, K) int32, position of each of the K slots of a token.
        expert: (I,) int32, index of the expert whose slots are in each tile.
    """

    token: jax.Array
    position: jax.Array
    expert: jax.Array


def update(
    x_ND: jax.Array, routing: Routing, down_EDR: jax.Array, up_ERF: jax.Array, top_k: int
) -> jax.Array:
    """Return Σ_t G_t B_t A_t x for each token x, a sum over its top-k experts t with gates G_t.

    If the experts share a down-projection S_A, the caller applies it first: S_A x takes the place
    of x, and the cores P_t take the place of A_t.

    Args:
        x_ND: (N, D), input of the linear layer after dropout; or (N, S), S_A x.
        routing: Decisions of the router, with exactly K experts for each token.
        down_EDR: Down-projections A_t, (E, D, R); or cores P_t, (E, S, R).
        up_ERF: Up-projections B_t, (E, R, F).
        top_k: Number of experts of each token, K.

    Returns:
        (N, F) in the dtype of x.
    """
    slots, expert_NK = sort_by_expert(routing.selected, top_k)
    hidden_MR = _grouped_matmul(_dispatch(x_ND, slots), down_EDR.astype(x_ND.dtype), slots)
    out_MF = _grouped_matmul(hidden_MR, up_ERF.astype(x_ND.dtype), slots)
    gate_NK = jnp.take_along_axis(routing.gates, expert_NK, axis=1)
    gate_M1 = _dispatch_gates(gate_NK, slots)[:, None]
    return _combine(out_MF * gate_M1.astype(out_MF.dtype), slots)


def sort_by_expert(selected_NE: jax.Array, top_k: int) -> tuple[SortedSlots, jax.Array]:
    """Sort the slots, the pairs of a token and one of its experts, by expert.

    Args:
        selected_NE: (N, E), 1 for the experts of each token, else 0.
        top_k: Number of experts of each token, K.

    Returns:
        The sorted slots, and the indices of each token's experts in ascending order, (N, K) int32.
    """
    tokens, num_experts = selected_NE.shape
    chosen_NE = selected_NE > 0
    expert_NK = jnp.argsort(~chosen_NE, axis=1, stable=True)[:, :top_k].astype(jnp.int32)
    # Number of earlier tokens that use the same expert.
    offset_NE = jnp.cumsum(chosen_NE, axis=0, dtype=jnp.int32) - 1
    tiles_E = -(-(offset_NE[-1] + 1) // _TILE)
    # Upper bound, because shapes must not depend on the routing. Each expert has at most one
    # partial tile.
    tiles = -(-tokens * top_k // _TILE) + num_experts
    end_E = jnp.cumsum(tiles_E)
    start_E = (end_E - tiles_E) * _TILE
    position_NK = jnp.take_along_axis(offset_NE, expert_NK, axis=1) + start_E[expert_NK]
    token_NK = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], position_NK.shape)
    token_M = jnp.full(tiles * _TILE, tokens, jnp.int32).at[position_NK].set(token_NK)
    expert_I = jnp.searchsorted(end_E, jnp.arange(tiles), side='right')
    expert_I = jnp.minimum(expert_I, num_experts - 1).astype(jnp.int32)
    return SortedSlots(token_M, position_NK, expert_I), expert_NK


def _grouped_matmul(x_MD: jax.Array, weights_EDF: jax.Array, slots: SortedSlots) -> jax.Array:
    """Multiply each tile with the weights of its expert, in one batched product, (M, F).

    The weights are copied for each tile. This is faster than `ragged_dot` or a loop over tiles, as
    measured on CPU and as estimated by the TPU compiler.
    """
    x_IJD = x_MD.reshape(-1, _TILE, x_MD.shape[-1])
    out_IJF = jnp.einsum('IJD,IDF->IJF', x_IJD, weights_EDF[slots.expert])
    return out_IJF.reshape(x_MD.shape[0], -1)


@jax.custom_vjp
def _dispatch(x_ND: jax.Array, slots: SortedSlots) -> jax.Array:
    """Copy the vector of each token to the positions of its slots, (M, D); zeros at padding."""
    return x_ND.at[slots.token].get(mode='fill', fill_value=0)


@jax.custom_vjp
def _combine(y_MF: jax.Array, slots: SortedSlots) -> jax.Array:
    """Add up the K vectors of each token, one per slot, (N, F).

    As linear maps, `_combine` and `_dispatch` are transposes of each other, so each is the
    backward pass of the other.
    """
    first, *others = (y_MF[position_N] for position_N in slots.position.T)
    return sum(others, start=first)


def _dispatch_gates(gate_NK: jax.Array, slots: SortedSlots) -> jax.Array:
    """Copy the gate of each slot to the position of the slot, (M,); zeros at padding."""
    return jnp.zeros(slots.token.shape, gate_NK.dtype).at[slots.position].set(gate_NK)


_dispatch.defvjp(
    lambda x_ND, slots: (_dispatch(x_ND, slots), slots),
    lambda slots, gradient_MD: (_combine(gradient_MD, slots), None),
)
_combine.defvjp(
    lambda y_MF, slots: (_combine(y_MF, slots), slots),
    lambda slots, gradient_NF: (_dispatch(gradient_NF, slots), None),
)
