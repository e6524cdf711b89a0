"""How alike projections are: canonical correlations of the subspaces that their columns span.

The measure is the goodness of fit of canonical correlation analysis that work on LoRA's asymmetry
uses (Zhu et al. 2024; R²_CCA in Kornblith et al. 2019): the mean of the squared canonical
correlations, ‖Q_xᵀ Q_y‖² / min(rank), with orthonormal bases Q of the two column spaces. It is 1
for the same subspace and 0 for orthogonal ones, and does not depend on scales or on the basis in
which a projection is written. Columns are not centred: a projection is a linear map.

Dimension letters: L layers, E and G experts, D inputs (or outputs), R rank of an expert.
"""

from typing import NamedTuple

import numpy as np

# Of weights, relative to the largest singular value: they are kept in float32.
PRECISION = 2.0**-23


class Subspaces(NamedTuple):
    """The column spaces of projections.

    Attributes:
        basis: (L, E, D, R), orthonormal columns; those beyond the rank are zero.
        rank: (L, E) whole numbers.
    """

    basis: np.ndarray
    rank: np.ndarray


def subspaces(projections_LEDR: np.ndarray) -> Subspaces:
    """Bases of the column spaces; directions below float32's precision count as none."""
    # Twice, as the first basis is orthonormal only as far as the projection is well conditioned.
    basis_LEDR, _ = _whitened(np.asarray(projections_LEDR, np.float64))
    return Subspaces(*_whitened(basis_LEDR))


def similarity(one: Subspaces, other: Subspaces) -> np.ndarray:
    """(L, E, G): each of the one's subspaces with each of the other's; nan where one is empty."""
    L, E, D, R = one.basis.shape
    G, P = other.basis.shape[1], other.basis.shape[3]
    x_LQD = one.basis.swapaxes(2, 3).reshape(L, E * R, D)
    y_LDQ = other.basis.transpose(0, 2, 1, 3).reshape(L, D, G * P)
    squares = (x_LQD @ y_LDQ).reshape(L, E, R, G, P) ** 2
    least_LEG = np.minimum(one.rank[:, :, None], other.rank[:, None, :])
    return _ratio(squares.sum(axis=(2, 4)), least_LEG)


def independent(one: Subspaces, other: Subspaces) -> np.ndarray:
    """(L, E, G): the expected similarity of subspaces that have nothing to do with each other.

    Where at least one of two subspaces of ranks p and q is drawn uniformly in D dimensions,
    E ‖Q_xᵀ Q_y‖² = p q / D, so that the mean squared correlation is max(p, q) / D.
    """
    p_LE1, q_L1G = one.rank[:, :, None], other.rank[:, None, :]
    product = p_LE1 * q_L1G / one.basis.shape[2]
    return _ratio(product, np.minimum(p_LE1, q_L1G))


def distinct_pairs(pairs_LEE: np.ndarray) -> np.ndarray:
    """(L, E (E - 1) / 2): of similarities within one set of experts, each pair once."""
    rows, columns = np.triu_indices(pairs_LEE.shape[-1], k=1)
    return pairs_LEE[:, rows, columns]


def _whitened(x_LEDR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X V Λ^(-1/2) with XᵀX = V Λ Vᵀ, and how many directions there are.

    Of the few columns' products: many times faster than a decomposition of the matrix itself, which
    numpy's threads make slower still.
    """
    square_LER, v_LERR = np.linalg.eigh(x_LEDR.swapaxes(-1, -2) @ x_LEDR)
    largest_LE1 = square_LER[..., -1:]
    kept_LER = square_LER > largest_LE1 * PRECISION**2
    root_LER = np.sqrt(square_LER, out=np.ones_like(square_LER), where=kept_LER)
    factors_LERR = v_LERR * (kept_LER / root_LER)[..., None, :]
    return x_LEDR @ factors_LERR, kept_LER.sum(axis=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )
