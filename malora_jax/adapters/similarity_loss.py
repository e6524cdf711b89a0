"""Similarity loss of D²MoRA: the absolute cosines between the experts' flattened matrices.

The loss is the sum of |cos(M_i, M_j)| over the pairs i < j of experts, where M_i is the matrix of
expert i: its down-projection, its core, or its up-projection. Matrices of one kind are compared
with each other, within each adapted linear layer, and the sum runs over all of them.

The loss follows the authors' code (`compute_loss_with_orthogonal` of `trainer.py` in
iLearn-Lab/AAAI26-D2MoRA, commit c60b03f).

Dimension letters: L layers, E matrices of one kind in a linear layer, I inputs of a matrix, R its
outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.base_structure import Axis
from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.trees import named_leaves

# Cosines divide by norms of at least this number, so that a matrix of zeros has the cosine zero.
_SMALLEST_NORM = 1e-6


def similarity_loss(adapter: AdapterConfig, trained: Any) -> jax.Array:
    """Return the sum of the absolute cosines between experts, over all adapted linear layers.

    Factors that the experts share, frozen ones and routers do not count, and neither do experts
    that a layer does not have.

    Args:
        adapter: Settings of the adapter.
        trained: Trained parameters of all layers: leaves (L, ...), named as in `adapter.axes`.

    Returns:
        () float32.
    """
    one, total = Axis('', 1), jnp.float32(0)
    axes = adapter.axes(one, one)
    for path, leaf in named_leaves(trained):
        first = axes[path.rpartition('/')[-1]][0]
        if first.name in ('expert', 'up_expert'):
            counts_L = np.full(len(leaf), first.size)
            if first.name == 'expert':
                counts_L = adapter.layer_experts(len(leaf))
            total += sum_of_cosines(leaf, counts_L)
    return total


def sum_of_cosines(matrices_LEIR: jax.Array, counts_L: np.ndarray) -> jax.Array:
    """Return the sum of the absolute cosines of all pairs of matrices, over all layers.

    Args:
        matrices_LEIR: (L, E, I, R) float32, matrices.
        counts_L: (L,) int, number of matrices of each layer that count, which are the first ones.

    Returns:
        () float32.
    """
    gram_LEE = jnp.einsum(
        'LEIR,LGIR->LEG', matrices_LEIR, matrices_LEIR, precision=jax.lax.Precision.HIGHEST
    )
    square_LE = jnp.diagonal(gram_LEE, axis1=1, axis2=2)
    norm_LE = jnp.sqrt(jnp.maximum(square_LE, _SMALLEST_NORM**2))
    cosine_LEE = gram_LEE / (norm_LE[:, :, None] * norm_LE[:, None])
    number_E = np.arange(matrices_LEIR.shape[1])
    is_pair_EE = number_E[:, None] < number_E[None]
    is_counted_LEE = is_pair_EE[None] & (number_E[None, None] < counts_L[:, None, None])
    # Unlike that of `jnp.abs`, this gradient is zero where a cosine is zero.
    sign_LEE = jnp.sign(jax.lax.stop_gradient(cosine_LEE))
    return (sign_LEE * cosine_LEE * is_counted_LEE).sum()
