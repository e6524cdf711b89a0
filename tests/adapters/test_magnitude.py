"""DoRA's column norms and factor, compared with an explicit W + (α/r) B A."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters import LowRankExperts, Magnitude, method
from malora_jax.adapters.products import column_norms
from tests.helpers import reference

INPUTS, OUTPUTS = 24, 20


class Linear(nn.Module):
    """A linear with a kernel and an adapter, which returns y and DoRA's factor."""

    frozen: tuple[str, ...] = ()

    def setup(self):
        config = method('dora', rank=5, alpha=15.0, frozen=self.frozen)
        self.experts = LowRankExperts(config, OUTPUTS)
        self.rescale = Magnitude(config, 'mlp')
        nn.share_scope(self, self.experts)
        nn.share_scope(self, self.rescale)

    def __call__(self, x_ND, kernel_DF):
        update_NF = self.experts(x_ND)
        return (x_ND @ kernel_DF + update_NF) * self.rescale(kernel_DF)[None]


def normal(seed: int, *shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


KERNEL, X = normal(0, INPUTS, OUTPUTS), normal(1, 7, INPUTS)
LEAVES = {
    'down': normal(2, 1, INPUTS, 5),
    'up': normal(3, 1, 5, OUTPUTS),
    'magnitude': normal(4, OUTPUTS),
}
CONFIG = method('dora', rank=5, alpha=15.0)


@pytest.mark.parametrize('scale', [0.0, 0.3, 3.0])
def test_lengths_are_those_of_the_sum(scale):
    down_DR, up_RF = LEAVES['down'][0], LEAVES['up'][0]
    total = np.asarray(KERNEL, np.float64) + scale * np.asarray(down_DR, np.float64) @ np.asarray(
        up_RF, np.float64
    )
    found = column_norms(KERNEL, down_DR, up_RF, scale)
    np.testing.assert_allclose(found, np.linalg.norm(total, axis=0), rtol=1e-5)


def test_lengths_need_no_matrix_of_the_kernels_size():
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 512), (512, 4), (4, 512))
    ]
    compiled = jax.jit(lambda *factors: column_norms(*factors, 2.0)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 512 * 4 / 8


def test_the_equation_and_its_gradients_with_the_norm_held_fixed():
    """The gradients equal central differences in float64: step 1e-5, error 1e-4."""
    W = np.asarray(KERNEL, np.float64).T
    exact = float64(LEAVES)
    lengths = reference.column_norms(W, exact, CONFIG)
    found = Linear().apply({'adapter': LEAVES}, X, KERNEL)
    expected = reference.adapted_linear(float64(X), W, exact, CONFIG)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    weights_NF = normal(5, 7, OUTPUTS)

    def objective(leaves):
        return (Linear().apply({'adapter': leaves}, X, KERNEL) * weights_NF).sum()

    def value(leaves, lengths):
        y = reference.adapted_linear(float64(X), W, leaves, CONFIG, lengths)
        return (y * np.asarray(weights_NF, np.float64)).sum()

    gradients = float64(jax.grad(objective)(LEAVES))
    for name, gradient in gradients.items():
        direction = np.random.default_rng(6).normal(size=gradient.shape)
        ends = [exact | {name: exact[name] + sign * 1e-5 * direction} for sign in (1, -1)]
        slope = (value(ends[0], lengths) - value(ends[1], lengths)) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-4, err_msg=name)
        full = (value(ends[0], None) - value(ends[1], None)) / 2e-5
        # As in the paper, the gradient ignores the norm's own slope, which does not affect that of
        # m.
        assert (abs(full - slope) < 1e-3 * abs(slope)) == (name == 'magnitude')


def test_starts_at_the_kernels_lengths_and_changes_nothing():
    y_NF, variables = Linear().init_with_output(jax.random.key(0), X, KERNEL)
    magnitude = nn.unbox(variables)['adapter']['magnitude']
    np.testing.assert_allclose(magnitude, np.linalg.norm(KERNEL, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(y_NF, X @ KERNEL)


def test_a_column_of_zeros_stays_finite():
    kernel = KERNEL.at[:, 3].set(0)
    y_NF, _ = Linear().init_with_output(jax.random.key(0), X, kernel)
    assert np.isfinite(y_NF).all()
    assert not np.any(y_NF[:, 3])


def test_frozen_leaves_are_found_in_their_collection():
    frozen = ('down', 'magnitude')
    variables = nn.unbox(Linear(frozen).init(jax.random.key(0), X, KERNEL))
    assert {name: {*tree} for name, tree in variables.items()} == {
        'adapter': {'up'},
        'adapter_frozen': {'down', 'magnitude'},
    }
    split = {
        'adapter': {'up': LEAVES['up']},
        'adapter_frozen': {name: LEAVES[name] for name in frozen},
    }
    np.testing.assert_array_equal(
        Linear(frozen).apply(split, X, KERNEL), Linear().apply({'adapter': LEAVES}, X, KERNEL)
    )
