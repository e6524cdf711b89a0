"""Rotary embeddings and masked attention, as plain functions of arrays.

Dimension letters: B batch, T tokens, S places of a past, X = S + T, I queries of a block, J their
keys, H query heads, K key/value heads, G = H / K query heads of one key/value head, C head width.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.models.config import Llama3Scaling

# Queries of a block are a multiple of this, in so many blocks at most: each is compiled.
_BLOCK = 128
_MOST_BLOCKS = 8
# A score whose exponential is zero, unlike minus infinity finite where nothing is visible.
_HIDDEN = -1e30


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


def attend(
    q_BTHC: jax.Array, k_BTKC: jax.Array, v_BTKC: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Causal attention within the segments of packed rows; (B, T, H, C) in the dtype of q.

    Queries go in blocks, each with the keys up to its end: later ones are not visible. For the
    gradient only the output and the logarithm of each softmax's denominator are kept, and scores
    are computed again, as in FlashAttention-2 (Dao 2023). Softmax in float32.

    Args:
        q_BTHC: rotated queries.
        k_BTKC: rotated keys, each for H / K heads.
        v_BTKC: values.
        segments_BT: segment (packed example) of each token; 0 is padding, a segment too.
    """
    B, T, H, C = q_BTHC.shape
    K = k_BTKC.shape[2]
    q_BKGTC = q_BTHC.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k_BKTC, v_BKTC = (x.transpose(0, 2, 1, 3) for x in (k_BTKC, v_BTKC))
    out_BKGTC = _attend(q_BKGTC, k_BKTC, v_BKTC, segments_BT)
    return out_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


@jax.custom_vjp
def _attend(q_BKGTC, k_BKTC, v_BKTC, segments_BT):
    return _forward(q_BKGTC, k_BKTC, v_BKTC, segments_BT)[0]


def _forward(q_BKGTC, k_BKTC, v_BKTC, segments_BT):
    outs, lses = [], []
    for rows, keys in _blocks(segments_BT.shape[1]):
        scores_BKGIJ = _scores(q_BKGTC, k_BKTC, segments_BT, rows, keys)
        top_BKGI1 = scores_BKGIJ.max(axis=-1, keepdims=True)
        weights_BKGIJ = jnp.exp(scores_BKGIJ - top_BKGI1)
        total_BKGI1 = weights_BKGIJ.sum(axis=-1, keepdims=True)
        out_BKGIC = _product('BKGIJ,BKJC->BKGIC', weights_BKGIJ, v_BKTC[:, :, keys])
        outs.append((out_BKGIC / total_BKGI1).astype(q_BKGTC.dtype))
        lses.append(top_BKGI1 + jnp.log(total_BKGI1))
    out_BKGTC, lse_BKGT1 = (jnp.concatenate(parts, axis=3) for parts in (outs, lses))
    # Named, so that a policy of rematerialisation can keep them.
    out_BKGTC, lse_BKGT1 = (checkpoint_name(x, 'attended') for x in (out_BKGTC, lse_BKGT1))
    return out_BKGTC, (q_BKGTC, k_BKTC, v_BKTC, segments_BT, out_BKGTC, lse_BKGT1)


def _backward(kept, gradient_BKGTC):
    q_BKGTC, k_BKTC, v_BKTC, segments_BT, out_BKGTC, lse_BKGT1 = kept
    products_BKGTC = gradient_BKGTC.astype(jnp.float32) * out_BKGTC.astype(jnp.float32)
    mean_BKGT1 = products_BKGTC.sum(axis=-1, keepdims=True)
    dqs = []
    dk_BKTC, dv_BKTC = (jnp.zeros(k_BKTC.shape, jnp.float32) for _ in range(2))
    for rows, keys in _blocks(segments_BT.shape[1]):
        q_BKGIC, gradient_BKGIC = q_BKGTC[..., rows, :], gradient_BKGTC[..., rows, :]
        k_BKJC, v_BKJC = k_BKTC[:, :, keys], v_BKTC[:, :, keys]
        scores_BKGIJ = _scores(q_BKGTC, k_BKTC, segments_BT, rows, keys)
        weights_BKGIJ = jnp.exp(scores_BKGIJ - lse_BKGT1[..., rows, :])
        dv_BKJC = _product('BKGIJ,BKGIC->BKJC', weights_BKGIJ, gradient_BKGIC)
        dweights_BKGIJ = _product('BKGIC,BKJC->BKGIJ', gradient_BKGIC, v_BKJC)
        dscores_BKGIJ = weights_BKGIJ * (dweights_BKGIJ - mean_BKGT1[..., rows, :])
        dqs.append(_product('BKGIJ,BKJC->BKGIC', dscores_BKGIJ, k_BKJC))
        dk_BKJC = _product('BKGIJ,BKGIC->BKJC', dscores_BKGIJ, q_BKGIC)
        dk_BKTC = dk_BKTC.at[:, :, keys].add(dk_BKJC)
        dv_BKTC = dv_BKTC.at[:, :, keys].add(dv_BKJC)
    scale = q_BKGTC.shape[-1] ** -0.5
    return (
        (scale * jnp.concatenate(dqs, axis=3)).astype(q_BKGTC.dtype),
        (scale * dk_BKTC).astype(k_BKTC.dtype),
        dv_BKTC.astype(v_BKTC.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[slice, slice]]:
    """Queries of each block, and the keys up to its end."""
    size = _BLOCK * -(-length // (_BLOCK * _MOST_BLOCKS))
    return [
        (slice(start, min(start + size, length)), slice(0, min(start + size, length)))
        for start in range(0, length, size)
    ]


def _scores(q_BKGTC, k_BKTC, segments_BT, rows: slice, keys: slice) -> jax.Array:
    """Scores of one block in float32, far below zero where a key is not visible."""
    scores_BKGIJ = _product('BKGIC,BKJC->BKGIJ', q_BKGTC[..., rows, :], k_BKTC[:, :, keys])
    visible_BIJ = visible(
        jnp.arange(rows.start, rows.stop), segments_BT[:, rows], segments_BT[:, keys]
    )
    scores_BKGIJ *= q_BKGTC.shape[-1] ** -0.5
    return jnp.where(visible_BIJ[:, None, None], scores_BKGIJ, _HIDDEN)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A product in the model's dtype, that of either factor, summed up in float32."""
    dtype = jnp.bfloat16 if jnp.bfloat16 in (left.dtype, right.dtype) else jnp.float32
    return jnp.einsum(
        spec, left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32
    )


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


def attend_past(
    q_BTHC: jax.Array,
    k_BKTC: jax.Array,
    v_BKTC: jax.Array,
    past_k_BKSC: jax.Array,
    past_v_BKSC: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """Causal attention of new tokens over those before them; (B, T, H, C) in the dtype of q.

    Softmax in float32.

    Args:
        q_BTHC: rotated queries of the new tokens.
        k_BKTC: their rotated keys, each for H / K heads.
        v_BKTC: their values.
        past_k_BKSC: keys of the tokens before them.
        past_v_BKSC: values of these.
        length_B: how many of the S places are filled in each row.
    """
    B, T, H, C = q_BTHC.shape
    K, S = past_k_BKSC.shape[1:3]
    q_BKGTC = q_BTHC.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4)
    filled_BS = jnp.arange(S)[None] < length_B[:, None]
    causal_TJ = jnp.tril(jnp.ones((T, T), bool))
    scores_BKGTX = jnp.concatenate(
        [
            _product('BKGTC,BKSC->BKGTS', q_BKGTC, past_k_BKSC)
            + jnp.where(filled_BS, 0, _HIDDEN)[:, None, None, None],
            _product('BKGTC,BKJC->BKGTJ', q_BKGTC, k_BKTC)
            + jnp.where(causal_TJ, 0, _HIDDEN)[None, None, None],
        ],
        axis=-1,
    )
    weights_BKGTX = jax.nn.softmax(scores_BKGTX * C**-0.5, axis=-1)
    out_BKGTC = _product('BKGTS,BKSC->BKGTC', weights_BKGTX[..., :S], past_v_BKSC)
    out_BKGTC += _product('BKGTJ,BKJC->BKGTC', weights_BKGTX[..., S:], v_BKTC)
    return out_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C).astype(q_BTHC.dtype)
