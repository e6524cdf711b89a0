"""GOAT: singular directions of the kernel, and a residual that makes the start equal the base."""

import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax import errors
from malora_jax.adapters import AdapterConfig, LowRankExperts, method
from malora_jax.adapters.base_structure import Axis
from malora_jax.adapters.goat import SingularDirections, singular_directions
from tests.helpers import reference

EXPERTS, RANK = 4, 3
CONFIG = method('goat', num_experts=EXPERTS, rank=RANK)


def kernel(inputs: int, outputs: int) -> np.ndarray:
    """Return a random kernel whose singular values fall from about 30 to 0.03."""
    rng = np.random.default_rng(0)
    size = min(inputs, outputs)
    left, _ = np.linalg.qr(rng.standard_normal((inputs, size)))
    right, _ = np.linalg.qr(rng.standard_normal((outputs, size)))
    return (left * np.geomspace(30, 0.03, size) @ right.T).astype(np.float32)


def start(kernel_DF: np.ndarray, config: AdapterConfig = CONFIG) -> dict[str, np.ndarray]:
    found = singular_directions(kernel_DF, config.structure.segment_indices(*kernel_DF.shape))
    layers = SingularDirections(*(array[None] for array in found))
    return {
        name: leaf[0] for name, leaf in config.structure.start_leaves(layers, config.scale).items()
    }


@pytest.mark.parametrize('shape', [(50, 34), (34, 50), (40, 40)])
def test_start_is_the_singular_value_decomposition(shape):
    """A_t = √(Σ_t / (s ρ)) V_tᵀ and B_t = U_t √(Σ_t / (s ρ)), s = √(3 n / r), up to signs."""
    kernel_DF, leaves = kernel(*shape), start(kernel(*shape))
    U, sigma, Vt = np.linalg.svd(kernel_DF.T.astype(np.float64), full_matrices=False)
    s = np.sqrt(3 * shape[0] / RANK)
    for t in range(EXPERTS):
        first = t * (min(shape) // EXPERTS)
        own = slice(first, first + RANK)
        root = np.sqrt(sigma[own] / (s * 10))
        A_t, B_t = root[:, None] * Vt[own], U[:, own] * root
        np.testing.assert_allclose(np.abs(leaves['down'][t].T), np.abs(A_t), rtol=0, atol=2e-6)
        np.testing.assert_allclose(np.abs(leaves['up'][t].T), np.abs(B_t), rtol=0, atol=2e-6)
        found = leaves['up'][t].T @ leaves['down'][t].T
        np.testing.assert_allclose(found, B_t @ A_t, rtol=0, atol=1e-6 * np.abs(B_t @ A_t).max())
    np.testing.assert_array_equal(leaves['residual_down'], leaves['down'])
    np.testing.assert_array_equal(leaves['residual_up'], leaves['up'])


def test_the_start_without_width_scale_is_that_of_the_scale_alpha_over_r():
    """s B_t A_t with s = α / r is the part of W in the expert's directions, divided by ρ = 10."""
    config = method('goat', num_experts=EXPERTS, rank=RANK, alpha=7.0, width_scale=False)
    kernel_DF = kernel(34, 50)
    leaves = start(kernel_DF, config)
    U, sigma, Vt = np.linalg.svd(kernel_DF.T.astype(np.float64), full_matrices=False)
    for t in range(EXPERTS):
        own = slice(t * (34 // EXPERTS), t * (34 // EXPERTS) + RANK)
        expected = U[:, own] * sigma[own] @ Vt[own] / 10
        found = 7 / RANK * leaves['up'][t].T @ leaves['down'][t].T
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_signs_do_not_depend_on_the_library(monkeypatch):
    expected, eigh = start(kernel(34, 50)), np.linalg.eigh
    signs = np.random.default_rng(1).choice([-1, 1], 34)
    monkeypatch.setattr(
        np.linalg, 'eigh', lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * signs)
    )
    for name, leaf in start(kernel(34, 50)).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_a_kernel_without_enough_directions():
    """Directions of a kernel of rank 2 after the second are zero, not noise."""
    rng = np.random.default_rng(2)
    kernel_DF = (rng.standard_normal((34, 2)) @ rng.standard_normal((2, 50))).astype(np.float32)
    found = singular_directions(kernel_DF, np.arange(4))
    assert (found.sigma[:2] > 1).all()
    np.testing.assert_allclose(found.left * found.sigma @ found.right, kernel_DF, atol=1e-5)
    assert not any(np.any(leaf) for leaf in start(np.zeros((34, 50), np.float32)).values())


def test_update_is_zero_at_the_start_if_gates_are_equal():
    """With a router of zeros and all experts active, each gate is 1 / E."""
    config = method('goat', num_experts=EXPERTS, rank=RANK, top_k=EXPERTS)
    leaves = start(kernel(34, 50)) | {'router': np.zeros((34, EXPERTS), np.float32)}
    x_ND = np.random.default_rng(3).standard_normal((5, 34)).astype(np.float32)
    residual = {name: leaves.pop(name) for name in config.structure.frozen}
    experts = LowRankExperts(config, 50)
    found = experts.apply({'adapter': leaves, 'adapter_frozen': residual}, x_ND)
    no_residual = {name: 0 * leaf for name, leaf in residual.items()}
    mixture = experts.apply({'adapter': leaves, 'adapter_frozen': no_residual}, x_ND)
    # The sum of the experts' parts of W x, divided by ρ and E.
    assert np.abs(mixture).max() > 0.1
    np.testing.assert_allclose(found, 0 * found, atol=1e-6 * np.abs(mixture).max())


def test_residual_sees_the_input_without_dropout():
    rng = np.random.default_rng(4)
    x_ND = rng.standard_normal((14, 34)).astype(np.float32)
    dropped_ND = x_ND * (rng.random(x_ND.shape) > 0.5)
    experts = LowRankExperts(CONFIG, 50)
    axes = CONFIG.axes(Axis('embed', 34), Axis('mlp', 50))
    sizes = {name: [axis.size for axis in own] for name, own in axes.items()}
    leaves = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    variables = {
        'adapter': {name: leaves[name] for name in ('router', 'down', 'up')},
        'adapter_frozen': {name: leaves[name] for name in CONFIG.structure.frozen},
    }
    found = experts.apply(variables, jnp.asarray(x_ND), jnp.asarray(dropped_ND))
    wide = {name: leaf.astype(np.float64) for name, leaf in leaves.items()}
    expected = reference.adapter_update(
        x_ND.astype(np.float64), wide, CONFIG, dropped_ND.astype(np.float64)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_more_ranks_than_singular_directions_are_refused():
    message = r'adapter.rank is 9; it must be at most 8 with 4 experts .* has 34 of them'
    with pytest.raises(errors.UserError, match=message):
        LowRankExperts(method('goat', num_experts=4, rank=9), 50).init({}, jnp.ones((1, 34)))
