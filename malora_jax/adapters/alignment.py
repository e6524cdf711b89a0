"""Alignment loss of Align-LoRA: distance between the down-projected inputs of different tasks.

The down-projected inputs A x of the tokens of each task are described by a normal distribution with
a diagonal covariance. The loss is the symmetric Kullback-Leibler divergence between the
distributions of two tasks, averaged over all pairs of tasks (Liu et al. 2025, arXiv 2508.05078).

Dimension letters: N tokens, G groups of tokens (tasks), Q columns of the down-projection, L any
leading axes (layers).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to each variance.
_EPSILON = 1e-8
_HIGHEST = jax.lax.Precision.HIGHEST


class TaskMoments(NamedTuple):
    """Mean and variance of the down-projected inputs of each task, in one batch.

    Attributes:
        tokens: (..., G) float32, number of tokens of each task.
        mean: (..., G, Q) float32, mean over these tokens; zero without tokens.
        variance: (..., G, Q) float32, mean squared distance from the mean; zero without tokens.
    """

    tokens: jax.Array
    mean: jax.Array
    variance: jax.Array


def task_moments(projected_NQ: jax.Array, groups_NG: jax.Array) -> TaskMoments:
    """Return mean and variance of the down-projected inputs of each task.

    Args:
        projected_NQ: (N, Q), down-projected inputs.
        groups_NG: (N, G) float32, one-hot group of each token; zeros for padding, which is not
            counted.
    """
    projected_NQ = projected_NQ.astype(jnp.float32)
    tokens_G = groups_NG.sum(axis=0)
    share_GN = (groups_NG / jnp.maximum(tokens_G, 1)[None]).T
    mean_GQ = jnp.matmul(share_GN, projected_NQ, precision=_HIGHEST)
    # Squares of the distances, because a difference of large squares would lose precision.
    distance_NQ = projected_NQ - jnp.matmul(groups_NG, mean_GQ, precision=_HIGHEST)
    variance_GQ = jnp.matmul(share_GN, distance_NQ**2, precision=_HIGHEST)
    return TaskMoments(tokens_G, mean_GQ, variance_GQ)


def alignment_loss(moments: TaskMoments) -> jax.Array:
    """Return the mean symmetric divergence between the distributions of two tasks.

    For normal distributions with means μ and variances v, it is ½ KL(i‖j) + ½ KL(j‖i) = ¼ Σ (v_i /
    v_j + v_j / v_i + (μ_i - μ_j)² (1 / v_i + 1 / v_j) - 2), a sum over the Q columns. Tasks with
    fewer than two tokens do not count.

    Args:
        moments: Moments with leading axes L.

    Returns:
        (L...,) float32; 0 with fewer than two tasks.
    """
    is_present_LG = moments.tokens >= 2
    # A variance of 1 keeps the gradient of absent tasks finite.
    variance_LGQ = jnp.where(is_present_LG[..., None], moments.variance + _EPSILON, 1)
    v_i, v_j = variance_LGQ[..., :, None, :], variance_LGQ[..., None, :, :]
    distance = moments.mean[..., :, None, :] - moments.mean[..., None, :, :]
    divergence_LGG = (v_i / v_j + v_j / v_i + distance**2 * (1 / v_i + 1 / v_j) - 2).sum(-1) / 4
    is_pair_LGG = is_present_LG[..., :, None] & is_present_LG[..., None, :]
    is_other_GG = 1 - jnp.eye(divergence_LGG.shape[-1])
    total_L = jnp.einsum('...ij,ij->...', jnp.where(is_pair_LGG, divergence_LGG, 0), is_other_GG)
    tasks_L = is_present_LG.sum(-1)
    return total_L / jnp.maximum(tasks_L * (tasks_L - 1), 1)
