"""Rotary embeddings and masked attention, as plain functions of arrays.

Dimension letters: B batch, T queries, S keys, H query heads, K key/value heads, G = H / K query
heads of one key/value head, C head width.
"""

import math

import jax
import jax.numpy as jnp

from malora_jax.models.config import Llama3Scaling


def rotate(
    x_BTHC: jax.Array, positions_BT: jax.Array, theta: float, scaling: Llama3Scaling | None = None
) -> jax.Array:
    """Rotary position embedding: entry i is paired with entry i + C / 2, angles in float32."""
    half = x_BTHC.shape[-1] // 2
    frequency_C = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_C = stretch(frequency_C, scaling)
    angle_BT1C = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_C[None, None, None]
    cos, sin = jnp.cos(angle_BT1C), jnp.sin(angle_BT1C)
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHC.dtype)


def stretch(frequency_C: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    """Llama 3's frequencies for a longer context: high ones as they were, low ones divided.

    A frequency that turns n times within the original context keeps the share
    (n - low) / (high - low), between 0 and 1, of itself; the rest is divided by the factor.
    """
    turns_C = scaling.original_context * frequency_C / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_C = jnp.clip((turns_C - low) / (high - low), 0, 1)
    return frequency_C * (kept_C + (1 - kept_C) / scaling.factor)


def visible(
    query_index_T: jax.Array, query_segments_BT: jax.Array, key_segments_BS: jax.Array
) -> jax.Array:
    """Which keys each query sees: earlier or equal ones of its own segment; (B, T, S) bool.

    Args:
        query_index_T: where in the row of keys each query stands.
        query_segments_BT: segment (packed example) of each query; 0 is padding.
        key_segments_BS: segment of each key.
    """
    causal_TS = jnp.arange(key_segments_BS.shape[1])[None] <= query_index_T[:, None]
    same_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return causal_TS[None] & same_BTS


def attend(
    q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, visible_BTS: jax.Array
) -> jax.Array:
    """Grouped-query attention with softmax in float32; (B, T, H, C) in the dtype of q.

    A query that sees no key (there is none: each sees itself) would average over all.
    """
    B, T, H, C = q_BTHC.shape
    K = k_BSKC.shape[2]
    q_BTKGC = q_BTHC.reshape(B, T, K, H // K, C) * C**-0.5
    scores_BKGTS = jnp.einsum(
        'BTKGC,BSKC->BKGTS', q_BTKGC, k_BSKC, preferred_element_type=jnp.float32
    )
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKC.dtype)
    out_BTKGC = jnp.einsum('BKGTS,BSKC->BTKGC', weights_BKGTS, v_BSKC)
    return out_BTKGC.reshape(B, T, H, C)
