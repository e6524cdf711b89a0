"""Rotary position embeddings (RoPE) and grouped-query attention, as pure functions of arrays.

Dimension letters: B batch, T tokens, S KV cache length, X = S + T, I queries of a block, J keys of
a block, H query heads, K key/value heads, G = H / K query heads per key/value head, C head width.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax import compiler
from malora_jax.models.config import Llama3Scaling

# `attend` splits the queries into at most _MAX_BLOCKS blocks, whose size is a multiple of _BLOCK.
# The number is limited because the loop over blocks is unrolled: each adds to the compile time.
_BLOCK = 128
_MAX_BLOCKS = 8
# Score of a masked key. Its exponential is zero, and unlike minus infinity it gives no NaN in the
# softmax of a query whose keys are all masked.
_MASK_VALUE = -1e30


def apply_rope(
    x_BTHC: jax.Array, positions_BT: jax.Array, theta: float, scaling: Llama3Scaling | None = None
) -> jax.Array:
    """Apply the rotary position embedding (RoPE) to queries or keys.

    Entry i of a head is paired with entry i + C / 2, the convention of `transformers`.

    Args:
        x_BTHC: Queries or keys.
        positions_BT: int32 position of each token.
        theta: Base of the wavelengths.
        scaling: Scaling of the frequencies to a longer context, or None.

    Returns:
        (B, T, H, C) in the dtype of x; angles are computed in float32.
    """
    half = x_BTHC.shape[-1] // 2
    frequency_C = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_C = scale_frequencies(frequency_C, scaling)
    angle_BT1C = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_C[None, None, None]
    cos, sin = jnp.cos(angle_BT1C), jnp.sin(angle_BT1C)
    # XLA's CPU compiler contracts one of two products below and their sum to an operation that
    # rounds once. Without the barrier, the choice depends on what is fused with them, and then an
    # adapter whose update is zero would change the last bits of the outputs.
    x32_BTHC = compiler.barrier_on_cpu(x_BTHC).astype(jnp.float32)
    first, second = jnp.split(x32_BTHC, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHC.dtype)


def scale_frequencies(frequency_C: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    """Scale RoPE frequencies to a longer context as Llama 3.1 does.

    Let n be the number of turns that a frequency makes within the original context. A frequency
    with n ≥ high stays as it is. A frequency with n ≤ low is divided by the factor. In between, the
    result is the weighted mean of both values; the unchanged value has weight
    (n - low) / (high - low).

    Args:
        frequency_C: Frequencies in radians per position, one for each pair of entries.
        scaling: Scaling settings: the factor, the bounds `low_frequency_factor` and
            `high_frequency_factor` (low and high above), and the original context.

    Returns:
        Scaled frequencies, of the same shape.
    """
    turns_C = scaling.original_context * frequency_C / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    weight_C = jnp.clip((turns_C - low) / (high - low), 0, 1)
    return frequency_C * (weight_C + (1 - weight_C) / scaling.factor)


def attend(
    q_BTHC: jax.Array, k_BTKC: jax.Array, v_BTKC: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Compute causal attention within the segments of packed rows.

    Queries are processed in blocks, each with the keys up to the block's end, as later keys are
    masked anyway. The backward pass recomputes the scores: besides the inputs, only the output and
    the log-sum-exp of each query's scores are saved, as in FlashAttention-2 (Dao 2023). The softmax
    is computed in float32.

    Args:
        q_BTHC: Queries after RoPE.
        k_BTKC: Keys after RoPE, each shared by H / K query heads.
        v_BTKC: Values.
        segments_BT: int32 segment (packed example) of each token. Padding is segment 0, and its
            tokens attend to each other.

    Returns:
        (B, T, H, C) in the dtype of q.
    """
    q_BKGTC = _grouped(q_BTHC, k_BTKC.shape[2])
    k_BKTC, v_BKTC = (x.transpose(0, 2, 1, 3) for x in (k_BTKC, v_BTKC))
    return _ungrouped(_attend(q_BKGTC, k_BKTC, v_BKTC, segments_BT))


@jax.custom_vjp
def _attend(q_BKGTC, k_BKTC, v_BKTC, segments_BT):
    return _forward(q_BKGTC, k_BKTC, v_BKTC, segments_BT)[0]


def _forward(q_BKGTC, k_BKTC, v_BKTC, segments_BT):
    outs, lses = [], []
    for queries, keys in _blocks(segments_BT.shape[1]):
        scores_BKGIJ = _scores(q_BKGTC, k_BKTC, segments_BT, queries, keys)
        top_BKGI1 = scores_BKGIJ.max(axis=-1, keepdims=True)
        weights_BKGIJ = jnp.exp(scores_BKGIJ - top_BKGI1)
        total_BKGI1 = weights_BKGIJ.sum(axis=-1, keepdims=True)
        out_BKGIC = _product('BKGIJ,BKJC->BKGIC', weights_BKGIJ, v_BKTC[:, :, keys])
        outs.append((out_BKGIC / total_BKGI1).astype(q_BKGTC.dtype))
        lses.append(top_BKGI1 + jnp.log(total_BKGI1))
    out_BKGTC, lse_BKGT1 = (jnp.concatenate(parts, axis=3) for parts in (outs, lses))
    # Named so that a rematerialization policy can save them: see `decoder.REMAT_POLICIES`.
    out_BKGTC, lse_BKGT1 = (checkpoint_name(x, 'attended') for x in (out_BKGTC, lse_BKGT1))
    return out_BKGTC, (q_BKGTC, k_BKTC, v_BKTC, segments_BT, out_BKGTC, lse_BKGT1)


def _backward(residuals, gradient_BKGTC):
    q_BKGTC, k_BKTC, v_BKTC, segments_BT, out_BKGTC, lse_BKGT1 = residuals
    # As in FlashAttention-2, delta is the row sum of dO · O, which equals that of dP · P.
    products_BKGTC = gradient_BKGTC.astype(jnp.float32) * out_BKGTC.astype(jnp.float32)
    delta_BKGT1 = products_BKGTC.sum(axis=-1, keepdims=True)
    dqs = []
    dk_BKTC, dv_BKTC = (jnp.zeros(k_BKTC.shape, jnp.float32) for _ in range(2))
    for queries, keys in _blocks(segments_BT.shape[1]):
        q_BKGIC, gradient_BKGIC = q_BKGTC[..., queries, :], gradient_BKGTC[..., queries, :]
        k_BKJC, v_BKJC = k_BKTC[:, :, keys], v_BKTC[:, :, keys]
        scores_BKGIJ = _scores(q_BKGTC, k_BKTC, segments_BT, queries, keys)
        weights_BKGIJ = jnp.exp(scores_BKGIJ - lse_BKGT1[..., queries, :])
        dv_BKJC = _product('BKGIJ,BKGIC->BKJC', weights_BKGIJ, gradient_BKGIC)
        dweights_BKGIJ = _product('BKGIC,BKJC->BKGIJ', gradient_BKGIC, v_BKJC)
        dscores_BKGIJ = weights_BKGIJ * (dweights_BKGIJ - delta_BKGT1[..., queries, :])
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
    """Split the queries into blocks; return a slice of queries and a slice of keys for each block.

    The keys of a block are all keys from the start of the row to the last query of the block.
    """
    size = _BLOCK * -(-length // (_BLOCK * _MAX_BLOCKS))
    return [
        (slice(start, min(start + size, length)), slice(0, min(start + size, length)))
        for start in range(0, length, size)
    ]


def _scores(q_BKGTC, k_BKTC, segments_BT, queries: slice, keys: slice) -> jax.Array:
    """Return the float32 attention scores of one block, `_MASK_VALUE` where a key is masked."""
    # On CPUs, XLA would choose the layout of the keys by what else reads them. Another layout has
    # other rounding errors, and the backward pass, which computes the scores again, needs the same.
    q_BKGIC, k_BKJC = map(compiler.barrier_on_cpu, (q_BKGTC[..., queries, :], k_BKTC[:, :, keys]))
    scores_BKGIJ = _product('BKGIC,BKJC->BKGIJ', q_BKGIC, k_BKJC)
    mask_BIJ = attention_mask(
        jnp.arange(queries.start, queries.stop), segments_BT[:, queries], segments_BT[:, keys]
    )
    scores_BKGIJ *= q_BKGTC.shape[-1] ** -0.5
    return jnp.where(mask_BIJ[:, None, None], scores_BKGIJ, _MASK_VALUE)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Compute an einsum that accumulates in float32.

    Inputs are cast to bfloat16 if either is bfloat16, and else to float32.
    """
    dtype = jnp.bfloat16 if jnp.bfloat16 in (left.dtype, right.dtype) else jnp.float32
    return jnp.einsum(
        spec, left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32
    )


def attention_mask(
    query_index_T: jax.Array, query_segments_BT: jax.Array, key_segments_BS: jax.Array
) -> jax.Array:
    """Return the attention mask: causal, and block-diagonal over segments.

    Args:
        query_index_T: Index of each query in the sequence of keys.
        query_segments_BT: Segment (packed example) of each query; 0 is padding.
        key_segments_BS: Segment of each key.

    Returns:
        (B, T, S) bool, True where the query attends to the key.
    """
    causal_TS = jnp.arange(key_segments_BS.shape[1])[None] <= query_index_T[:, None]
    same_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return causal_TS[None] & same_BTS


def attend_past(
    q_BTHC: jax.Array,
    k_BKCT: jax.Array,
    v_BKTC: jax.Array,
    past_k_BKCS: jax.Array,
    past_v_BKSC: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """Compute causal attention of new tokens over the KV cache and over each other.

    The softmax is computed in float32.

    Args:
        q_BTHC: Queries of the new tokens after RoPE.
        k_BKCT: Keys of the new tokens after RoPE, each shared by H / K query heads.
        v_BKTC: Values of the new tokens.
        past_k_BKCS: Cached keys, after RoPE.
        past_v_BKSC: Cached values.
        length_B: int32 number of cached tokens in each row; the other positions are masked.

    Returns:
        (B, T, H, C) in the dtype of q.
    """
    q_BKGTC = _grouped(q_BTHC, k_BKCT.shape[1])
    T, C = q_BKGTC.shape[3:]
    S = past_v_BKSC.shape[2]
    filled_BS = jnp.arange(S)[None] < length_B[:, None]
    causal_TJ = jnp.tril(jnp.ones((T, T), bool))
    scores_BKGTX = jnp.concatenate(
        [
            _product('BKGTC,BKCS->BKGTS', q_BKGTC, past_k_BKCS)
            + jnp.where(filled_BS, 0, _MASK_VALUE)[:, None, None, None],
            _product('BKGTC,BKCJ->BKGTJ', q_BKGTC, k_BKCT)
            + jnp.where(causal_TJ, 0, _MASK_VALUE)[None, None, None],
        ],
        axis=-1,
    )
    weights_BKGTX = jax.nn.softmax(scores_BKGTX * C**-0.5, axis=-1)
    out_BKGTC = _product('BKGTS,BKSC->BKGTC', weights_BKGTX[..., :S], past_v_BKSC)
    out_BKGTC += _product('BKGTJ,BKJC->BKGTC', weights_BKGTX[..., S:], v_BKTC)
    return _ungrouped(out_BKGTC).astype(q_BTHC.dtype)


def update_cache(
    k_BKCS: jax.Array,
    v_BKSC: jax.Array,
    new_k_BKC1: jax.Array,
    new_v_BK1C: jax.Array,
    length_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Write the key and the value of one new token behind the cached ones of each row.

    Args:
        k_BKCS: Cached keys after RoPE.
        v_BKSC: Cached values.
        new_k_BKC1: Key of the new token after RoPE.
        new_v_BK1C: Value of the new token.
        length_B: int32 number of cached tokens in each row. In a full row, the new token replaces
            the last one.

    Returns:
        The new caches. XLA writes them in place if nothing else reads the old ones.
    """
    B, K, C, S = k_BKCS.shape
    # One row per head, so that even with B = 1 there are several: XLA would write a single one with
    # a fusion that it duplicates, which copies the cache.
    row_M, position_M = jnp.arange(B * K), jnp.repeat(jnp.minimum(length_B, S - 1), K)
    k_MCS, v_MSC = k_BKCS.reshape(-1, C, S), v_BKSC.reshape(-1, S, C)
    k_MCS = k_MCS.at[row_M, :, position_M].set(new_k_BKC1.reshape(-1, C))
    v_MSC = v_MSC.at[row_M, position_M].set(new_v_BK1C.reshape(-1, C))
    return k_MCS.reshape(k_BKCS.shape), v_MSC.reshape(v_BKSC.shape)


def attend_cache(
    q_B1HC: jax.Array, k_BKCS: jax.Array, v_BKSC: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Compute attention of one new token over a KV cache to which it was added.

    The softmax is computed in float32.

    Args:
        q_B1HC: Queries of the new token after RoPE.
        k_BKCS: Cached keys after RoPE, each shared by H / K query heads.
        v_BKSC: Cached values.
        length_B: int32 number of cached tokens in each row before the new one.

    Returns:
        (B, 1, H, C) in the dtype of q.
    """
    q_BKG1C = _grouped(q_B1HC, k_BKCS.shape[1])
    visible_BS = jnp.arange(k_BKCS.shape[3])[None] <= length_B[:, None]
    scores_BKG1S = _product('BKGTC,BKCS->BKGTS', q_BKG1C, k_BKCS) * q_B1HC.shape[-1] ** -0.5
    scores_BKG1S = jnp.where(visible_BS[:, None, None, None], scores_BKG1S, _MASK_VALUE)
    weights_BKG1S = jax.nn.softmax(scores_BKG1S, axis=-1)
    out_BKG1C = _product('BKGTS,BKSC->BKGTC', weights_BKG1S, v_BKSC)
    return _ungrouped(out_BKG1C).astype(q_B1HC.dtype)


def _grouped(q_BTHC: jax.Array, num_kv_heads: int) -> jax.Array:
    """Group the query heads by the key/value head that they share, (B, K, G, T, C)."""
    B, T, H, C = q_BTHC.shape
    shape = (B, T, num_kv_heads, H // num_kv_heads, C)
    return q_BTHC.reshape(shape).transpose(0, 2, 3, 1, 4)


def _ungrouped(x_BKGTC: jax.Array) -> jax.Array:
    """Return the attention outputs of all heads, (B, T, H, C): the inverse of `_grouped`."""
    B, _, _, T, C = x_BKGTC.shape
    return x_BKGTC.transpose(0, 3, 1, 2, 4).reshape(B, T, -1, C)
