"""Singular values of the concatenated projections of all experts (Figure 3 of the paper).

Dimension letters: L layers, E experts, D inputs (or outputs), R rank of an expert, K singular
values.
"""

import numpy as np


def singular_values(projections_LEDR: np.ndarray) -> np.ndarray:
    """Return the singular values of each layer's concatenated projections, in descending order.

    Args:
        projections_LEDR: (L, E, D, R) projections. Those of all experts of a layer are concatenated
            to a matrix of D by E · R.

    Returns:
        (L, K), with K = min(D, E · R).
    """
    L, E, D, R = projections_LEDR.shape
    x_LDQ = projections_LEDR.transpose(0, 2, 1, 3).reshape(L, D, E * R)
    # Eigenvalues of the smaller Gram matrix are many times faster than an SVD of the matrix.
    x_LDQ = x_LDQ if D >= E * R else x_LDQ.swapaxes(1, 2)
    square_LK = np.linalg.eigvalsh(x_LDQ.swapaxes(1, 2) @ x_LDQ)[:, ::-1]
    return np.sqrt(np.maximum(square_LK, 0))


def directions(sigma_LK: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Return how many of the largest singular values make up a given share of the squared norm.

    The squared norm of a matrix is the sum of its squared singular values. Each singular value
    belongs to one direction, its singular vector.

    Args:
        sigma_LK: (L, K) singular values of one matrix for each layer, in descending order.
        share: Share of the squared norm, 0 to 1.

    Returns:
        (L,) integers; 0 for a zero matrix.
    """
    carried_LK = np.cumsum(sigma_LK**2, axis=-1)
    total_L1 = carried_LK[:, -1:]
    # The tolerance keeps rounding errors from adding a direction if the share is met exactly.
    met_LK = carried_LK >= share * total_L1 * (1 - 1e-12)
    return np.where(total_L1[:, 0] > 0, met_LK.argmax(axis=-1) + 1, 0)


def random_singular_values(projections_LEDR: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the singular values of a random matrix for each layer, as a control.

    The random matrix has the shape of a layer's concatenated projections, and independent normal
    entries. It is drawn once, and scaled to the Frobenius norm of each layer.

    Args:
        projections_LEDR: (L, E, D, R) projections that give the shape and the norms.
        seed: Random seed of the matrix.

    Returns:
        (L, K), in descending order.
    """
    drawn = np.random.default_rng(seed).standard_normal(projections_LEDR.shape[1:])
    sigma_1K = singular_values(drawn[None])
    norm_L = np.linalg.norm(projections_LEDR.reshape(len(projections_LEDR), -1), axis=-1)
    return norm_L[:, None] * sigma_1K / np.linalg.norm(sigma_1K)
