"""The experts' update by dispatch: each token goes to its K experts and to no other.

As FastMoE (He et al. 2021) does it for the paper's times: token slots are sorted by expert, their
vectors gathered, multiplied expert by expert, and summed up for each token. The result is that of
`compute` in rank space, which is faster wherever experts are of low rank; this is the reference.

Groups are padded to whole tiles, so that shapes do not depend on the routing and no token is ever
dropped. A slot knows its token and a token its slots: both ways, and for both gradients, vectors
are gathered, never scattered.

Dimension letters: N tokens, K experts of a token, E experts, D inputs, S subspace, R rank, F
outputs, M places (slots with the padding of their groups), I tiles, J places of a tile.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Places of a tile: the experts' share of a batch is padded to a multiple of it.
_TILE = 128


class Slots(NamedTuple):
    """Where the K · N slots are.

    Attributes:
        token: (M,) int32, the token in each place; N where there is none.
        place: (N, K) int32, the places of each token.
        expert: (I,) int32, the expert of each tile.
        sizes: (E,) int32, places of each expert, the last one's with all that are left over.
    """

    token: jax.Array
    place: jax.Array
    expert: jax.Array
    sizes: jax.Array


def update(
    x_ND: jax.Array,
    gates_NE: jax.Array,
    selected_NE: jax.Array,
    factors: Mapping[str, jax.Array],
    top_k: int,
    how: str,
) -> jax.Array:
    """Σ_t G_t B_t A_t x, or Σ_t G_t B_t P_t S_A x, over the chosen experts: (N, F).

    Args:
        x_ND: input of the down-projection.
        gates_NE: float32, see `router.Routing`.
        selected_NE: float32, 1 for exactly K experts of a token.
        factors: `down` or `shared_down` and `core`, and `up`.
        top_k: K.
        how: which of `PRODUCTS` multiplies expert by expert.
    """
    product = PRODUCTS[how]
    slots, expert_NK = assign(selected_NE, top_k)
    down_EDR = factors['down' if 'down' in factors else 'core']
    if 'shared_down' in factors:
        # The paper's saving: S dimensions of a token are dispatched, not D.
        x_ND = x_ND @ factors['shared_down'].astype(x_ND.dtype)
    hidden_MR = product(_spread(x_ND, slots), down_EDR.astype(x_ND.dtype), slots)
    out_MF = product(hidden_MR, factors['up'].astype(x_ND.dtype), slots)
    gate_NK = jnp.take_along_axis(gates_NE, expert_NK, axis=1)
    gate_M1 = _spread_gates(gate_NK, slots)[:, None]
    return _collect(out_MF * gate_M1.astype(out_MF.dtype), slots)


def assign(selected_NE: jax.Array, top_k: int) -> tuple[Slots, jax.Array]:
    """The slots of all tokens, and (N, K) int32: the experts of each, in rising order."""
    tokens, num_experts = selected_NE.shape
    chosen_NE = selected_NE > 0
    expert_NK = jnp.argsort(~chosen_NE, axis=1, stable=True)[:, :top_k].astype(jnp.int32)
    # How many tokens before it took the same expert.
    rank_NE = jnp.cumsum(chosen_NE, axis=0, dtype=jnp.int32) - 1
    tiles_E = -(-(rank_NE[-1] + 1) // _TILE)
    tiles = -(-tokens * top_k // _TILE) + num_experts  # The most that there can be.
    end_E = jnp.cumsum(tiles_E)
    start_E = (end_E - tiles_E) * _TILE
    place_NK = jnp.take_along_axis(rank_NE, expert_NK, axis=1) + start_E[expert_NK]
    token_NK = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], place_NK.shape)
    token_M = jnp.full(tiles * _TILE, tokens, jnp.int32).at[place_NK].set(token_NK)
    expert_I = jnp.searchsorted(end_E, jnp.arange(tiles), side='right')
    expert_I = jnp.minimum(expert_I, num_experts - 1).astype(jnp.int32)
    sizes_E = (tiles_E * _TILE).at[-1].add((tiles - end_E[-1]) * _TILE)
    return Slots(token_M, place_NK, expert_I, sizes_E), expert_NK


def ragged(x_MD: jax.Array, weights_EDF: jax.Array, slots: Slots) -> jax.Array:
    """One ragged product, as the backend has it: (M, F)."""
    return jax.lax.ragged_dot(x_MD, weights_EDF, slots.sizes)


def batched(x_MD: jax.Array, weights_EDF: jax.Array, slots: Slots) -> jax.Array:
    """A product of each tile with a copy of its expert's weights, all in one: (M, F)."""
    x_IJD = x_MD.reshape(-1, _TILE, x_MD.shape[-1])
    out_IJF = jnp.einsum('IJD,IDF->IJF', x_IJD, weights_EDF[slots.expert])
    return out_IJF.reshape(x_MD.shape[0], -1)


def looped(x_MD: jax.Array, weights_EDF: jax.Array, slots: Slots) -> jax.Array:
    """Tile after tile, each with its expert's weights: (M, F)."""
    x_IJD = x_MD.reshape(-1, _TILE, x_MD.shape[-1])
    out_IJF = jax.lax.map(
        lambda tile: tile[0] @ jax.lax.dynamic_index_in_dim(weights_EDF, tile[1], 0, False),
        (x_IJD, slots.expert),
    )
    return out_IJF.reshape(x_MD.shape[0], -1)


PRODUCTS = {'ragged': ragged, 'batched': batched, 'looped': looped}


@jax.custom_vjp
def _spread(x_ND: jax.Array, slots: Slots) -> jax.Array:
    """The token's vector in each place, zeros where there is none: (M, D)."""
    return x_ND.at[slots.token].get(mode='fill', fill_value=0)


@jax.custom_vjp
def _collect(y_MF: jax.Array, slots: Slots) -> jax.Array:
    """The sum of each token's places: (N, F); the transpose of `_spread`."""
    first, *others = (y_MF[place_N] for place_N in slots.place.T)
    return sum(others, start=first)


def _spread_gates(gate_NK: jax.Array, slots: Slots) -> jax.Array:
    """The gate of each place, zero where there is none: (M,)."""
    return jnp.zeros(slots.token.shape, gate_NK.dtype).at[slots.place].set(gate_NK)


_spread.defvjp(
    lambda x_ND, slots: (_spread(x_ND, slots), slots),
    lambda slots, gradient_MD: (_collect(gradient_MD, slots), None),
)
_collect.defvjp(
    lambda y_MF, slots: (_collect(y_MF, slots), slots),
    lambda slots, gradient_NF: (_spread(gradient_NF, slots), None),
)
