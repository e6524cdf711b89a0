"""Similarity of projections: canonical correlations of the subspaces that their columns span.

The measure is the goodness of fit of canonical correlation analysis (R²_CCA in Kornblith et al.
2019), which Zhu et al. 2024 use to study LoRA's asymmetry. It is the mean of the squared canonical
correlations, ‖Q_xᵀ Q_y‖² / min(rank), with orthonormal bases Q of the two column spaces. It is 1
for equal subspaces and 0 for orthogonal ones. It does not depend on scales or on the choice of the
bases. Columns are not centered, because a projection is a linear map.

Dimension letters: L layers, E and G experts, D inputs (or outputs), R rank of an expert.
"""

from typing import NamedTuple

import numpy as np

# Relative precision of singular values: weights are stored in float32.
FLOAT32_EPSILON = 2.0**-23


class Subspaces(NamedTuple):
    """Column spaces of projections.

    Attributes:
        basis: (L, E, D, R) float64 orthonormal columns; columns beyond the rank are zero.
        rank: (L, E) integer ranks.
    """

    basis: np.ndarray
    rank: np.ndarray


def subspaces(projections_LEDR: np.ndarray) -> Subspaces:
    """Return an orthonormal basis of each projection's column space.

    Directions whose singular values are only float32 rounding errors are dropped.

    Args:
        projections_LEDR: (L, E, D, R) projections.
    """
    # Whiten twice, because the first basis of an ill-conditioned projection is not orthonormal.
    basis_LEDR, _ = _whitened(np.asarray(projections_LEDR, np.float64))
    return Subspaces(*_whitened(basis_LEDR))


def cca_similarity(one: Subspaces, other: Subspaces) -> np.ndarray:
    """Return the similarity of each subspace of `one` with each subspace of `other`.

    Args:
        one: Subspaces of E experts.
        other: Subspaces of G experts.

    Returns:
        (L, E, G), between 0 and 1; nan for pairs with a subspace of rank 0.
    """
    L, E, D, R = one.basis.shape
    G, P = other.basis.shape[1], other.basis.shape[3]
    x_LQD = one.basis.swapaxes(2, 3).reshape(L, E * R, D)
    y_LDQ = other.basis.transpose(0, 2, 1, 3).reshape(L, D, G * P)
    squares = (x_LQD @ y_LDQ).reshape(L, E, R, G, P) ** 2
    min_rank_LEG = np.minimum(one.rank[:, :, None], other.rank[:, None, :])
    return _ratio(squares.sum(axis=(2, 4)), min_rank_LEG)


def independent_similarity(one: Subspaces, other: Subspaces) -> np.ndarray:
    """Return the expected similarity of independent random subspaces, (L, E, G).

    Let Q_x and Q_y be orthonormal bases of two subspaces of a D-dimensional space, with ranks p and
    q. If at least one of the subspaces is drawn uniformly, the expected value of ‖Q_xᵀ Q_y‖² is
    p q / D. Division by min(p, q) gives the expected similarity, max(p, q) / D.

    Args:
        one: Subspaces of E experts.
        other: Subspaces of G experts.
    """
    p_LE1, q_L1G = one.rank[:, :, None], other.rank[:, None, :]
    product = p_LE1 * q_L1G / one.basis.shape[2]
    return _ratio(product, np.minimum(p_LE1, q_L1G))


def distinct_pairs(pairs_LEE: np.ndarray) -> np.ndarray:
    """Return the similarity of each pair of distinct experts once, (L, E (E - 1) / 2).

    Args:
        pairs_LEE: (L, E, E) similarities within one set of experts.
    """
    rows, columns = np.triu_indices(pairs_LEE.shape[-1], k=1)
    return pairs_LEE[:, rows, columns]


def _whitened(x_LEDR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis of the columns of each matrix X, and the rank of X.

    The basis is X V Λ^(-1/2). V and Λ are the eigenvectors and eigenvalues of XᵀX. The
    eigendecomposition of this small R × R matrix is many times faster than a singular value
    decomposition of X.
    """
    square_LER, v_LERR = np.linalg.eigh(x_LEDR.swapaxes(-1, -2) @ x_LEDR)
    largest_LE1 = square_LER[..., -1:]
    nonzero_LER = square_LER > largest_LE1 * FLOAT32_EPSILON**2
    root_LER = np.sqrt(square_LER, out=np.ones_like(square_LER), where=nonzero_LER)
    factors_LERR = v_LERR * (nonzero_LER / root_LER)[..., None, :]
    return x_LEDR @ factors_LERR, nonzero_LER.sum(axis=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )
