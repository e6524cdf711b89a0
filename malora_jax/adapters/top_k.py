"""Masks of the K largest scores of each token, and the probability of a sample of K experts.

Dimension letters: N tokens, E experts.
"""

import jax
import jax.numpy as jnp

# Largest K for which K passes over the scores are faster than the bits of a threshold.
_MAX_PASSES = 4


def top_k_mask(scores_NE: jax.Array, top_k: int) -> jax.Array:
    """Return a mask of the K largest scores of each row.

    Each row has exactly K ones; among equal scores, those with lower indices win.

    Args:
        scores_NE: (N, E) float32, scores.
        top_k: Number of ones per row, K.

    Returns:
        (N, E) in the dtype of the scores: 1 for the K largest scores, else 0.
    """
    if top_k == scores_NE.shape[-1]:
        return jnp.ones_like(scores_NE)
    if top_k > _MAX_PASSES:
        return _mask_by_threshold(scores_NE, top_k)
    # The K passes of arg-max fuse into one elementwise kernel, unlike a sort.
    mask_NE = jnp.zeros_like(scores_NE)
    for _ in range(top_k):
        best_N = jnp.argmax(jnp.where(mask_NE > 0, -jnp.inf, scores_NE), axis=-1)
        mask_NE += jax.nn.one_hot(best_N, scores_NE.shape[-1], dtype=scores_NE.dtype)
    return mask_NE


def ordered_top_k(
    scores_NE: jax.Array, logits_NE: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
    """Return the experts with the K largest scores, and the probability of drawing them in order.

    With q = softmax(logits) and the experts i_1, …, i_K in descending order of their scores, the
    logarithm of the probability is Σ_j [log q(i_j) - log(1 - Σ_{j' < j} q(i_j'))]: drawn one after
    the other, without replacement. Each term is the log-softmax over the experts that are left.

    Args:
        scores_NE: (N, E), scores; their gradient is zero.
        logits_NE: (N, E), logits of the router; -inf for an expert that is not available.
        top_k: Number of experts, K.

    Returns:
        (N, E), 1 for the K experts with the largest scores, else 0; and (N,), the logarithm of the
        probability. Only the latter has a gradient, with respect to the logits.
    """
    scores_NE = jax.lax.stop_gradient(scores_NE)
    selected_NE = jnp.zeros_like(scores_NE)
    log_probability_N = jnp.zeros_like(scores_NE[:, 0])
    for _ in range(top_k):
        best_N = jnp.argmax(jnp.where(selected_NE > 0, -jnp.inf, scores_NE), axis=-1)
        best_NE = jax.nn.one_hot(best_N, scores_NE.shape[-1], dtype=scores_NE.dtype)
        left_NE = jnp.where(selected_NE > 0, -jnp.inf, logits_NE)
        best_logit_N = jnp.where(best_NE > 0, logits_NE, 0).sum(axis=-1)
        log_probability_N += best_logit_N - jax.nn.logsumexp(left_NE, axis=-1)
        selected_NE += best_NE
    return selected_NE, log_probability_N


def _mask_by_threshold(scores_NE: jax.Array, top_k: int) -> jax.Array:
    """Return the same mask, by a search for the K-th largest score.

    The search sets the 32 bits of a threshold one by one, and needs no sort.
    """
    keys_NE = _ordered_bits(scores_NE)

    def set_bit(i: jax.Array, kth_N1: jax.Array) -> jax.Array:
        larger_N1 = kth_N1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        has_k_N1 = (keys_NE >= larger_N1).sum(axis=-1, keepdims=True) >= top_k
        return jnp.where(has_k_N1, larger_N1, kth_N1)

    kth_N1 = jax.lax.fori_loop(0, 32, set_bit, jnp.zeros_like(keys_NE[:, :1]))
    is_above_NE, is_equal_NE = keys_NE > kth_N1, keys_NE == kth_N1
    missing_N1 = top_k - is_above_NE.sum(axis=-1, keepdims=True)
    is_first_NE = is_equal_NE & (jnp.cumsum(is_equal_NE, axis=-1) <= missing_N1)
    return (is_above_NE | is_first_NE).astype(scores_NE.dtype)


def _ordered_bits(values: jax.Array) -> jax.Array:
    """Return uint32 numbers in the same order as float32 values."""
    # -0 and 0 are equal, but have different bits.
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)
