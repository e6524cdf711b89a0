"""Singular values of all experts' projections side by side, as in the paper's Figure 3.

Dimension letters: L layers, E experts, D inputs (or outputs), R rank of an expert, K singular
values.
"""

import numpy as np


def singular_values(projections_LEDR: np.ndarray) -> np.ndarray:
    """(L, K): of the concatenation of a layer's experts, D by E · R, the largest first."""
    L, E, D, R = projections_LEDR.shape
    x_LDQ = projections_LEDR.transpose(0, 2, 1, 3).reshape(L, D, E * R)
    # Of the smaller square: many times faster than a decomposition of the matrix itself.
    x_LDQ = x_LDQ if D >= E * R else x_LDQ.swapaxes(1, 2)
    square_LK = np.linalg.eigvalsh(x_LDQ.swapaxes(1, 2) @ x_LDQ)[:, ::-1]
    return np.sqrt(np.maximum(square_LK, 0))


def directions(sigma_LK: np.ndarray, share: float = 0.9) -> np.ndarray:
    """(L,): the fewest directions that carry a share of the squared norm; 0 of a zero matrix."""
    carried_LK = np.cumsum(sigma_LK**2, axis=-1)
    total_L1 = carried_LK[:, -1:]
    # Rounding must not ask for one direction more where the share is met exactly.
    met_LK = carried_LK >= share * total_L1 * (1 - 1e-12)
    return np.where(total_L1[:, 0] > 0, met_LK.argmax(axis=-1) + 1, 0)


def random_singular_values(projections_LEDR: np.ndarray, seed: int = 0) -> np.ndarray:
    """(L, K): as `singular_values`, of random matrices of the same shapes and norms.

    One matrix of independent normal entries is drawn and scaled to each layer's norm.
    """
    drawn = np.random.default_rng(seed).standard_normal(projections_LEDR.shape[1:])
    sigma_1K = singular_values(drawn[None])
    norm_L = np.linalg.norm(projections_LEDR.reshape(len(projections_LEDR), -1), axis=-1)
    return norm_L[:, None] * sigma_1K / np.linalg.norm(sigma_1K)
