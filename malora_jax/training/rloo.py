"""Gradient of routers that sample their experts: REINFORCE with a leave-one-out baseline (RLOO).

A training step samples M independent selections of experts for each token. A selection has no
gradient, so the router learns which selections have a lower loss than the others (Qiu et al. 2026,
arXiv 2603.10160; the baseline is that of Kool et al. 2019).

The M selections of a row are M copies of it in one batch. Each weight of the base model is thus
read once for all of them, but activations take M times the memory.

Dimension letters: B batch, M samples, T sequence, N = B · M · T tokens of all copies, L layers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.distributed import sharding


def repeat_rows(batch: Mapping[str, Any], samples: int) -> dict[str, jax.Array]:
    """Return a batch with M copies of each row, one after the other.

    Copies of a row stay on the device that has the row.

    Args:
        batch: Arrays (B, T) by name.
        samples: Number of copies, M.

    Returns:
        Arrays (B · M, T) by name.
    """
    return {
        name: sharding.constrain(jnp.repeat(rows, samples, axis=0), 'rows', 'features')
        for name, rows in batch.items()
    }


def router_loss(
    nll_N: jax.Array, log_probabilities: Any, segments: jax.Array, samples: int
) -> jax.Array:
    """Return a scalar whose gradient is the estimated gradient of the expected loss.

    The choice of experts for a token affects the loss of this token and of later tokens of its
    example, and no other loss: attention is causal, and does not cross examples. Its credit is the
    sum of these losses. From the credit, the mean credit of the same token in the other M - 1
    samples is subtracted. This baseline does not depend on the choice. So the gradient

        Σ_m Σ_t (credit_mt - 1/(M - 1) Σ_{n ≠ m} credit_nt) ∇ log Q_mt / M

    is unbiased. With the loss of the whole batch as the credit of every token, it is the paper's
    1/(M - 1) Σ_m (L_m - mean(L)) ∇ log Q_m; the other losses would only add noise.

    Args:
        nll_N: (N,) float32, cross-entropy of each token of the copies, N = B · M · T.
        log_probabilities: Logarithms of the probabilities of each token's selections: a tree of
            arrays (L, N) float32, one for each adapted linear.
        segments: (B · M, T) int32, segment (packed example) of each token of the copies.
        samples: Number of samples, M; at least 2.

    Returns:
        () float32: M times the estimate, a sum over the copies. Only `log_probabilities` have a
        gradient, and the value has no meaning.
    """
    credit = cost_to_go(jax.lax.stop_gradient(nll_N).reshape(segments.shape), segments)
    credit_BMT = credit.reshape(-1, samples, segments.shape[-1])
    others_BMT = (credit_BMT.sum(axis=1, keepdims=True) - credit_BMT) / (samples - 1)
    log_probability_N = sum(each.sum(axis=0) for each in jax.tree.leaves(log_probabilities))
    return ((credit_BMT - others_BMT).reshape(-1) * log_probability_N).sum()


def cost_to_go(costs: jax.Array, segments: jax.Array) -> jax.Array:
    """Return the sum of the costs of each token and of the later tokens of its segment.

    Args:
        costs: (..., T), costs.
        segments: (..., T) int32, segment of each token; tokens of a segment are consecutive.

    Returns:
        (..., T).
    """
    is_last = segments != jnp.roll(segments, -1, axis=-1)

    def add(later: Any, earlier: Any) -> Any:
        (later_last, later_cost), (earlier_last, cost) = later, earlier
        return later_last | earlier_last, jnp.where(earlier_last, cost, later_cost + cost)

    return jax.lax.associative_scan(add, (is_last, costs), reverse=True, axis=costs.ndim - 1)[1]
