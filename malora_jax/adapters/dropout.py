"""Inverted dropout, with random bits that are cheap to recompute in the backward pass.

Dimension letters: N tokens, D entries of a token.
"""

import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters.base_structure import Structure, require
from malora_jax.adapters.routers import RouterConfig

# Dropout masks at the input of the down-projections: 'shared', one mask; or 'expert', one for each
# expert, as in the published code of several methods.
MASKS = ('shared', 'expert')


def check_masks(masks: str, structure: Structure, router: RouterConfig, dispatch: bool) -> None:
    """Check the settings `dropout_masks` and `router_dropout` of an adapter.

    Args:
        masks: Value of `dropout_masks`, one of `MASKS`.
        structure: Structure of the experts.
        router: Settings of the router, with `router_dropout`.
        dispatch: Whether the adapter has token dispatch.

    Raises:
        UserError: The masks are unknown, the experts cannot have different inputs, or no router can
            read the input after dropout.
    """
    if masks not in MASKS:
        raise errors.unknown_name('adapter.dropout_masks', masks, MASKS)
    has_own_inputs = structure.num_experts > 1 and structure.factors[0] == 'down'
    require(
        masks == 'shared' or (has_own_inputs and not dispatch),
        'dropout_masks',
        masks,
        "'shared' unless several experts have down-projections of their own, and dispatch is False",
    )
    has_router = structure.is_routed and structure.num_experts > 1
    require(
        not router.after_dropout or (has_router and masks == 'shared'),
        'router_dropout',
        True,
        "False without a router, or if dropout_masks is 'expert'",
    )


def drop_input(
    key: jax.Array, x_ND: jax.Array, rate: float | jax.Array, masks: str, num_experts: int
) -> jax.Array | tuple[jax.Array, ...]:
    """Return the input of the down-projections after dropout.

    Args:
        key: Random key.
        x_ND: Input of the linear layer.
        rate: Dropout rate, at least 0 and below 1.
        masks: One of `MASKS`.
        num_experts: Number of experts, E.

    Returns:
        (N, D), or E such arrays if each expert has a mask of its own.
    """
    if masks == 'shared':
        return dropout(key, x_ND, rate)
    return tuple(dropout(each, x_ND, rate) for each in jax.random.split(key, num_experts))


def dropout(key: jax.Array, x_ND: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Set each entry to zero with probability `rate`, and scale up the others.

    Args:
        key: Random key.
        x_ND: Activations.
        rate: Dropout rate, at least 0 and below 1.
    """
    keep = 1 - rate
    # Compare the upper 24 bits, because float32 represents these numbers exactly.
    is_kept_ND = (_random_bits(key, x_ND.shape) >> 8) < keep * 2**24
    return jnp.where(is_kept_ND, x_ND / jnp.asarray(keep, x_ND.dtype), 0)


def _random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return random uint32 numbers, (N, D), by a cheap hash.

    JAX's generator draws two numbers for each row. The numbers of a row are hashes of these two and
    of the column, by the final mix of MurmurHash3. JAX's generator alone would take about as long
    as the products of a LoRA.
    """
    start_N1, offset_N1 = jax.random.bits(key, (2, shape[0], 1), jnp.uint32)
    bits_ND = start_N1 + jnp.arange(shape[1], dtype=jnp.uint32)[None]
    bits_ND = (bits_ND ^ (bits_ND >> 16)) * jnp.uint32(0x85EBCA6B)
    bits_ND = (bits_ND ^ (bits_ND >> 13) ^ offset_N1) * jnp.uint32(0xC2B2AE35)
    return bits_ND ^ (bits_ND >> 16)
