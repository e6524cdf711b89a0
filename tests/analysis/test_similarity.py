"""Canonical correlations: planted ones, scipy's angles, and the classical eigenvalue problem."""

import numpy as np
import pytest
from scipy.linalg import solve, subspace_angles

from malora_jax.analysis.similarity import (
    cca_similarity,
    distinct_pairs,
    independent_similarity,
    subspaces,
)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def of(x_DR: np.ndarray, y_DP: np.ndarray) -> float:
    """Return the similarity of two single projections."""
    one, other = (subspaces(each[None, None]) for each in (x_DR, y_DP))
    return cca_similarity(one, other).item()


@pytest.mark.parametrize('correlations', [(1.0, 1.0), (0.0, 0.0), (0.9, 0.3), (1.0, 0.5)])
def test_planted_correlations_are_found(correlations):
    """Bases that meet at known angles, hidden behind another basis of each subspace."""
    orthonormal, _ = np.linalg.qr(random(40, 4))
    x, rest = orthonormal[:, :2], orthonormal[:, 2:]
    cosines = np.array(correlations)
    y = cosines * x + np.sqrt(1 - cosines**2) * rest
    mixed = of(x @ random(2, 2, seed=1), 7.0 * y @ random(2, 2, seed=2))
    assert mixed == pytest.approx(np.mean(cosines**2), abs=1e-12)


@pytest.mark.parametrize('ranks', [(3, 3), (2, 5), (6, 1)])
def test_it_is_the_mean_squared_cosine_of_scipy_s_angles(ranks):
    x, y = (random(20, rank, seed=rank + 10 * i) for i, rank in enumerate(ranks))
    expected = np.mean(np.cos(subspace_angles(x, y)) ** 2)
    assert of(x, y) == pytest.approx(expected, abs=1e-12)


def test_it_is_what_the_classical_eigenvalue_problem_gives():
    """The squared correlations are the eigenvalues of Hotelling's Sxx⁻¹ Sxy Syy⁻¹ Syx."""
    x, y = random(30, 3), random(30, 3, seed=1)
    x_on_y, y_on_x = solve(y.T @ y, y.T @ x), solve(x.T @ x, x.T @ y)
    assert of(x, y) == pytest.approx(np.trace(y_on_x @ x_on_y) / 3, abs=1e-12)


def test_badly_scaled_columns_make_no_difference():
    x, y = random(30, 4), random(30, 4, seed=1)
    assert of(x * [1e5, 1.0, 1e-1, 10.0], y) == pytest.approx(of(x, y), abs=1e-9)


def test_every_pair_of_experts_in_every_layer():
    x_LEDR, y_LGDP = random(2, 3, 12, 2), random(2, 4, 12, 3, seed=1)
    found_LEG = cca_similarity(subspaces(x_LEDR), subspaces(y_LGDP))
    assert found_LEG.shape == (2, 3, 4)
    for layer in range(2):
        for e in range(3):
            for g in range(4):
                alone = of(x_LEDR[layer, e], y_LGDP[layer, g])
                assert found_LEG[layer, e, g] == pytest.approx(alone, abs=1e-12)


def test_directions_that_are_none_do_not_count():
    """An expert whose core is narrower than its rank spans fewer directions."""
    narrow = random(20, 2) @ random(2, 5, seed=1)
    found = subspaces(narrow[None, None])
    assert found.rank.item() == 2
    assert of(narrow, random(20, 20, seed=2)) == pytest.approx(1.0)
    assert of(narrow, narrow @ random(5, 5, seed=3)) == pytest.approx(1.0)


def test_no_update_is_like_nothing():
    assert np.isnan(of(np.zeros((10, 2)), random(10, 2)))


def test_independent_subspaces_have_the_expected_similarity():
    """The expectation max(p, q) / D agrees with the mean of many draws."""
    drawn = random(4000, 1, 16, 5)
    fixed = subspaces(np.eye(16, 3)[None, None])
    expected = independent_similarity(fixed, subspaces(drawn[:1])).item()
    assert expected == 5 / 16
    found = [cca_similarity(fixed, subspaces(draw[None])).item() for draw in drawn[:, :]]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 4000**0.5)


def test_each_pair_within_a_layer_once():
    pairs_LEE = np.arange(18).reshape(2, 3, 3)
    np.testing.assert_array_equal(distinct_pairs(pairs_LEE), [[1, 2, 5], [10, 11, 14]])
