"""Initialization: equations (8) to (10) and the paper's conclusions from them."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from malora_jax.adapters import METHODS, LowRankExperts, method
from malora_jax.adapters.initializers import kaiming_uniform, shared_subspace
from malora_jax.adapters.settings import with_tasks

INPUTS, EXPERTS, RANK, SHARED = 576, 8, 12, 32


def subspace(beta: float, seed: int = 0):
    return shared_subspace(
        jax.random.key(seed),
        inputs=INPUTS,
        num_experts=EXPERTS,
        rank=RANK,
        shared_rank=SHARED,
        beta=beta,
    )


def test_kaiming_uniform_has_the_bound_and_variance():
    values = np.asarray(kaiming_uniform(jax.random.key(0), (16, INPUTS, 64)))
    bound = INPUTS**-0.5
    assert 0.999 * bound < np.abs(values).max() <= bound
    np.testing.assert_allclose(values.var(), 1 / (3 * INPUTS), rtol=0.01)


def test_shared_down_is_an_orthonormal_basis_times_beta():
    shared_down_DS, _ = subspace(beta=1.25)
    gram_SS = np.asarray(shared_down_DS).T @ np.asarray(shared_down_DS)
    np.testing.assert_allclose(gram_SS, 1.25**2 * np.eye(SHARED), atol=1e-5)


def test_first_expert_starts_as_its_own_kaiming_matrix():
    """P_0 S_A = (U_0 Σ_0)[:r̄] V_0 = K_0[:r̄] exactly, eq. (8)-(10)."""
    shared_down_DS, core_ESR = subspace(beta=0.7)
    k_EDS = kaiming_uniform(jax.random.key(0), (EXPERTS, INPUTS, SHARED))
    np.testing.assert_allclose(shared_down_DS @ core_ESR[0], k_EDS[0, :, :RANK], atol=1e-6)


def test_cores_are_those_of_a_singular_value_decomposition():
    """P_t = (U_t Σ_t)[:r̄] / β for every expert; a singular vector's sign is free."""
    _, core_ESR = subspace(beta=0.7)
    k_EDS = np.asarray(kaiming_uniform(jax.random.key(0), (EXPERTS, INPUTS, SHARED)))
    for core_SR, k_DS in zip(core_ESR, k_EDS, strict=True):
        u_SS, sigma_S, _ = np.linalg.svd(k_DS.T.astype(np.float64), full_matrices=False)
        right_SR = (u_SS * sigma_S)[:RANK].T / 0.7
        np.testing.assert_allclose(np.abs(core_SR), np.abs(right_SR), atol=1e-4)


@pytest.mark.parametrize('name', ['malora', 'malora_unshared'])
def test_the_start_does_not_depend_on_the_signs_of_singular_vectors(name, monkeypatch):
    """The signs are arbitrary, and another device's library may choose others."""
    config = method(name, num_experts=4, rank=6, shared_rank=8)
    eigh, svd = jnp.linalg.eigh, jnp.linalg.svd
    signs = jnp.array([1.0, -1, -1, 1, -1, 1, 1, -1])

    def other_eigh(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * signs[None, : len(values)]

    def other_svd(matrix, full_matrices):
        u, sigma, vt = svd(matrix, full_matrices=full_matrices)
        own = signs[: len(sigma)]
        return u * own[None], sigma, vt * own[:, None]

    expected = config.initialize(jax.random.key(3), 40, 24)
    monkeypatch.setattr(jnp.linalg, 'eigh', other_eigh)
    monkeypatch.setattr(jnp.linalg, 'svd', other_svd)
    found = config.initialize(jax.random.key(3), 40, 24)
    for leaf in expected:
        np.testing.assert_allclose(found[leaf], expected[leaf], atol=1e-6, err_msg=leaf)


def test_rows_of_the_product_keep_the_kaiming_scale():
    shared_down_DS, core_ESR = subspace(beta=1.0)
    product_EDR = np.einsum('DS,ESR->EDR', shared_down_DS, core_ESR)
    norms_ER = (product_EDR**2).sum(axis=1)
    np.testing.assert_allclose(norms_ER.mean(), 1 / 3, rtol=0.02)
    assert norms_ER.min() > 0.25
    assert norms_ER.max() < 0.42


@pytest.mark.parametrize('beta', [0.3, 2.0])
def test_product_does_not_depend_on_beta(beta):
    one, other = subspace(beta=1.0), subspace(beta=beta)
    np.testing.assert_allclose(other[0], beta * one[0], rtol=1e-5, atol=1e-7)
    for expert in range(EXPERTS):
        np.testing.assert_allclose(
            other[0] @ other[1][expert], one[0] @ one[1][expert], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize('beta', [0.5, 1.0])
def test_subspaces_of_their_own_start_orthonormal_and_with_maloras_scale(beta):
    leaves = method('malora_unshared', beta=beta).initialize(jax.random.key(0), INPUTS, 8)
    gram_EII = np.einsum('EDI,EDJ->EIJ', leaves['down'], leaves['down'])
    np.testing.assert_allclose(gram_EII, beta**2 * np.eye(4)[None].repeat(8, 0), atol=1e-5)
    product_EDR = np.einsum('EDI,EIR->EDR', leaves['down'], leaves['core'])
    # The mean of 96 rows of 4 uniform entries is within 10% of 1/3.
    np.testing.assert_allclose((product_EDR**2).sum(axis=1).mean(), 1 / 3, rtol=0.1)


@pytest.mark.parametrize('beta', [0.5, 1.25, 4.0])
def test_gradient_norms_scale_with_beta_and_its_inverse(beta):
    """Appendix A.3: |∂L/∂S_A| ∝ 1/β and |∂L/∂P_t| ∝ β, once B ≠ 0."""

    def gradients(beta):
        experts = LowRankExperts(method('malora', beta=beta), features=24)
        x_ND = jax.random.normal(jax.random.key(1), (32, INPUTS))
        leaves = nn.unbox(experts.init(jax.random.key(0), x_ND))['adapter']
        leaves['up'] = jax.random.normal(jax.random.key(2), leaves['up'].shape)

        def loss(leaves):
            return (experts.apply({'adapter': leaves}, x_ND) ** 2).sum()

        return jax.tree.map(jnp.linalg.norm, jax.grad(loss)(leaves))

    one, other = gradients(1.0), gradients(beta)
    np.testing.assert_allclose(other['shared_down'] / one['shared_down'], 1 / beta, rtol=1e-3)
    np.testing.assert_allclose(other['core'] / one['core'], beta, rtol=1e-3)
    np.testing.assert_allclose(other['up'], one['up'], rtol=1e-3)


MANY_SUBSPACES = """
import jax
from malora_jax.adapters.initializers import shared_subspace

def one(key):
    shapes = dict(inputs=192, num_experts=32, rank=6, shared_rank=24)
    return shared_subspace(key, beta=1.0, **shapes)

def layer(key):
    return {name: one(each) for name, each in zip('abcdef', jax.random.split(key, 6))}

many = jax.jit(layer)
layers = jax.jit(lambda keys: jax.lax.scan(lambda none, key: (none, layer(key)), None, keys)[1])
for seed in range(10):
    key = jax.random.key(seed)
    alone = jax.block_until_ready(many(key))
    scanned = jax.block_until_ready(layers(jax.random.split(key, 3)))
    assert [leaf.shape for leaf in alone['f']] == [(192, 24), (32, 24, 6)]
    assert [leaf.shape for leaf in scanned['f']] == [(3, 192, 24), (3, 32, 24, 6)]
    assert all(jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves((alone, scanned)))
print('done')
"""


def test_many_subspaces_at_once_do_not_deadlock():
    """Batched decompositions must not wait for each other forever, as they once did on two cores.

    Six run in one program, as for the linears of a layer, and then in a scan over layers. With few
    experts the deadlock does not show, because a small batch is not split among workers. The
    program runs in a separate process, so that a deadlock ends with a timeout.
    """
    done = subprocess.run(
        [sys.executable, '-c', MANY_SUBSPACES],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == 'done\n', done.stderr


def test_flyloras_down_projection_is_sparse():
    """Each rank reads K / E of the inputs; its values have the standard deviation 1 / E."""
    E, K = 64, 16
    config = method('flylora', num_experts=E, shared_rank=E, top_k=K)
    down_DE = np.asarray(config.initialize(jax.random.key(0), INPUTS, 8)['shared_down'])
    is_nonzero_DE = down_DE != 0
    np.testing.assert_array_equal(is_nonzero_DE.sum(axis=0), INPUTS * K // E)
    assert len(np.unique(is_nonzero_DE, axis=1).T) == E
    # Each input is read by about K ranks.
    assert abs(is_nonzero_DE.sum(axis=1) - K).max() < 6 * np.sqrt(K)
    values = down_DE[is_nonzero_DE] * E
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    np.testing.assert_allclose(values.var(), 1, rtol=4 * (2 / len(values)) ** 0.5)
    np.testing.assert_allclose((abs(values) < 1).mean(), 0.6827, atol=2 / len(values) ** 0.5)


def test_thresholds_of_adamole_start_near_half_of_their_maximum():
    leaves = method('adamole').initialize(jax.random.key(0), INPUTS, 8)
    assert 0 < abs(leaves['threshold_bias'].item()) <= INPUTS**-0.5


def test_tasks_of_mtl_lora_start_with_an_identity_and_random_weights():
    config = with_tasks(method('mtl_lora'), [f'task{number}' for number in range(200)])
    leaves = config.initialize(jax.random.key(0), INPUTS, 8)
    np.testing.assert_array_equal(leaves['core'], np.broadcast_to(np.eye(30), (200, 30, 30)))
    weights_TE, bound = np.asarray(leaves['task_weights']), 3**-0.5
    assert weights_TE.shape == (200, 3) and 0.98 * bound < abs(weights_TE).max() <= bound
    np.testing.assert_allclose(weights_TE.var(), bound**2 / 3, rtol=0.1)


@pytest.mark.parametrize('name', METHODS)
def test_what_the_paper_is_silent_about_starts_as_a_linear_layer(name):
    config = with_tasks(method(name), [f'task{number}' for number in range(200)])
    leaves = config.initialize(jax.random.key(0), INPUTS, 96)
    as_linear = {'router', 'down'} & leaves.keys() if name != 'malora_unshared' else {'router'}
    as_linear |= {
        'malora_shared_up': {'core'},
        'hydralora': {'shared_down'},
        'hydralora_top2': {'shared_down'},
        'adamole': {'router', 'threshold', 'down'},
        'smora': {'shared_down'},
        'mtl_lora': {'shared_down'},
        'moslora': {'shared_down', 'core'},
        'comol': {'shared_down', 'core'},
    }.get(name, set())
    for leaf in as_linear:
        values = np.asarray(leaves[leaf])
        bound = values.shape[-2] ** -0.5
        assert 0.98 * bound < np.abs(values).max() <= bound, leaf
        np.testing.assert_allclose(values.var(), bound**2 / 3, rtol=0.06, err_msg=leaf)
    # Only M-LoRA's heads start at random.
    assert np.asarray(leaves[config.structure.factors[-1]]).any() == (name == 'mlora_heads')


def test_the_second_router_starts_as_a_linear_layer():
    """Its 96 values per linear layer are too few for a variance, so these are many layers."""
    keys = jax.random.split(jax.random.key(0), 500)
    leaves = jax.vmap(lambda key: method('d2mora').initialize(key, 40, 24))(keys)
    values = np.asarray(leaves['up_router'])
    assert values.shape == (500, 12, 8)
    assert 0.999 * 12**-0.5 < np.abs(values).max() <= 12**-0.5
    np.testing.assert_allclose(values.var(), 1 / 36, rtol=0.02)
    # It is independent of the other leaves.
    others = np.concatenate([leaves['down'].reshape(500, -1), leaves['router'].reshape(500, -1)], 1)
    scores = np.corrcoef(values.reshape(500, -1).T, others.T)[:96, 96:]
    assert np.abs(scores).max() < 6 / 500**0.5
