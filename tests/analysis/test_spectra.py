"""Singular values of concatenated experts: planted ones, and eigenvalues as a second method."""

import numpy as np
import pytest

from malora_jax.analysis.expert_spectra import expert_spectra
from malora_jax.analysis.spectra import directions, random_singular_values, singular_values


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_planted_singular_values_are_found():
    """Orthonormal columns with known norms, rotated, and divided between two experts."""
    sigma = np.array([5.0, 3.0, 2.0, 0.5])
    basis, _ = np.linalg.qr(random(20, 4))
    rotation, _ = np.linalg.qr(random(4, 4, seed=1))
    whole = (basis * sigma) @ rotation
    experts = np.stack([whole[:, :2], whole[:, 2:]])
    np.testing.assert_allclose(singular_values(experts[None]), [sigma], atol=1e-12)


@pytest.mark.parametrize('width', [30, 4])
def test_squares_are_the_eigenvalues_of_the_sum_over_experts(width):
    """The sum is Σ_t A_t A_tᵀ, in layers with more and with fewer inputs than total rank."""
    projections_LEDR = random(2, 3, width, 2)
    found_LK = singular_values(projections_LEDR)
    for sigma_K, experts in zip(found_LK, projections_LEDR, strict=True):
        square = np.linalg.eigvalsh(sum(expert @ expert.T for expert in experts))[::-1]
        np.testing.assert_allclose(sigma_K**2, square[: len(sigma_K)], atol=1e-10)
    assert found_LK.shape == (2, min(width, 6))


@pytest.mark.parametrize(
    'sigma, expected',
    [
        ([1.0] * 10, 9),  # Nine give exactly 90%, regardless of rounding.
        ([3.0, 1.0], 1),  # 9 of 10.
        ([2.9, 1.0], 2),  # 8.41 of 9.41 is 89.4%.
        ([1.0, 0.0, 0.0], 1),
        ([0.0, 0.0], 0),
    ],
)
def test_directions_that_carry_90_percent_of_the_square(sigma, expected):
    assert directions(np.array([sigma])).item() == expected


def test_the_random_control_has_the_same_norm_and_is_flat():
    planted = random(3, 4, 200, 2) * np.array([30.0, 1.0])
    control_LK, own_LK = random_singular_values(planted), singular_values(planted)
    norms = (control_LK**2).sum(axis=-1), (own_LK**2).sum(axis=-1)
    np.testing.assert_allclose(*norms)
    # The singular values of a 200 × 8 Gaussian matrix are roughly within 1 ± √(8 / 200) of each
    # other.
    assert (control_LK.max(axis=-1) / control_LK.min(axis=-1) < 1.8).all()
    assert (directions(control_LK) > directions(own_LK)).all()


def test_a_subspace_has_no_more_directions_than_dimensions():
    """MALoRA: eight experts of rank 3 share a subspace of dimension 5."""
    shared, core, up = random(2, 30, 5), random(2, 8, 5, 3, seed=1), random(2, 8, 3, 40, seed=2)
    trained = {'A': shared[:, None] @ core, 'B': up.swapaxes(-1, -2)}
    start = {'A': shared[:, None] @ random(2, 8, 5, 3, seed=3)}
    found = expert_spectra(trained, start)
    assert found['A'].max_directions == 5 and found['A'].trained.shape == (2, 5)
    assert found['B'].max_directions == 24
    own = singular_values(start['A'])[:, :5]
    np.testing.assert_allclose(found['A'].control, own, atol=1e-12)
    assert (found['A'].directions <= 5).all() and (found['B'].directions <= 24).all()
    without = expert_spectra(trained, None)['A'].control
    assert not np.allclose(without, own)
