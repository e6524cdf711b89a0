"""Inverted dropout, with random bits that are cheap to recompute in the backward pass.

Dimension letters: N tokens, D entries of a token.
"""

import jax
import jax.numpy as jnp


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
