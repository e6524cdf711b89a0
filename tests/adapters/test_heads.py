"""M-LoRA: masks of the heads, the random start and its residual, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters import LowRankExperts, method
from malora_jax.adapters.dropout import dropout
from malora_jax.adapters.heads import MultiHeadLoRA
from malora_jax.adapters.settings import AdapterSettings, replace_settings, settings_of
from tests.helpers import reference

INPUTS, OUTPUTS, TOKENS, HEADS, RANK, RATE = 11, 7, 9, 3, 4, 0.25
SIZES = dict(num_experts=HEADS, top_k=HEADS, rank=RANK, shared_rank=RANK)
CONFIG = method('mlora_heads', **SIZES, alpha=6.0, head_dropout=RATE)
SCALE = 6.0 / RANK
FROZEN = ('residual_down', 'residual_up')
MASKS = jax.random.key(5)


def leaves_and_inputs():
    """Return random leaves, inputs, inputs after dropout, and weights of the outputs."""
    rng = np.random.default_rng(0)
    shapes = {
        'shared_down': (INPUTS, RANK),
        'up': (HEADS, RANK, OUTPUTS),
        'residual_down': (INPUTS, RANK),
        'residual_up': (RANK, OUTPUTS),
    }
    leaves = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    x_ND = rng.normal(size=(TOKENS, INPUTS))
    dropped_ND = np.where(rng.random(x_ND.shape) > 0.5, 2 * x_ND, 0)
    return leaves, x_ND, dropped_ND, rng.normal(size=(TOKENS, OUTPUTS))


def apply(leaves, x_ND, dropped_ND=None, key=None, config=CONFIG):
    """Return the update; with a key, in training."""
    variables = {
        'adapter': {name: leaf for name, leaf in leaves.items() if name not in FROZEN},
        'adapter_frozen': {name: leaves[name] for name in FROZEN},
    }
    experts = LowRankExperts(config, OUTPUTS)
    rngs = {} if key is None else {'dropout': key}
    return experts.apply(variables, x_ND, dropped_ND, train=key is not None, rngs=rngs)


def masks_of(key, config=CONFIG) -> np.ndarray:
    """Return m_i as factors of the entries of A x, (E, N, R), from updates of single entries.

    A x is one in every entry, and each head has one output for each of its ranks.
    """
    E, R = config.num_experts, config.structure.rank
    up_EPF = np.eye(E * R).reshape(E, R, E * R)
    variables = {
        'adapter': {'shared_down': np.eye(R), 'up': up_EPF},
        'adapter_frozen': {'residual_down': np.eye(R), 'residual_up': np.zeros((R, E * R))},
    }
    experts = LowRankExperts(config, E * R)
    ones_NR = jnp.ones((TOKENS, R))
    found_NP = experts.apply(variables, ones_NR, train=True, rngs={'dropout': key})
    kept_ENR = np.asarray(found_NP).reshape(-1, E, R).swapaxes(0, 1) > 0
    return kept_ENR / (1 - RATE)


def by_hand(leaves, x_ND, dropped_ND, masks_ENR):
    """Return s (Σ_i B_i (m_i ⊙ A x) - (Σ_i B_i⁰) A⁰ x), token by token, with the paper's letters.

    The residual sees x without dropout, and no mask.
    """
    A, A_0 = leaves['shared_down'].T, leaves['residual_down'].T
    B, B_0 = [each.T for each in leaves['up']], leaves['residual_up'].T
    y = np.zeros((len(x_ND), OUTPUTS))
    for n, (x, dropped) in enumerate(zip(x_ND, dropped_ND, strict=True)):
        for i in range(HEADS):
            y[n] += SCALE * B[i] @ (masks_ENR[i, n] * (A @ dropped))
        y[n] -= SCALE * B_0 @ A_0 @ x
    return y


def gradients_by_hand(leaves, x_ND, dropped_ND, masks_ENR, weights_NF):
    """Return the gradients of the weighted sum of the updates."""
    A, A_0 = leaves['shared_down'].T, leaves['residual_down'].T
    B, B_0 = [each.T for each in leaves['up']], leaves['residual_up'].T
    gradients = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
    gradient_x, gradient_dropped = np.zeros_like(x_ND), np.zeros_like(x_ND)
    for n, (x, dropped, c) in enumerate(zip(x_ND, dropped_ND, weights_NF, strict=True)):
        for i in range(HEADS):
            m = masks_ENR[i, n]
            gradients['up'][i] += SCALE * np.outer(m * (A @ dropped), c)
            gradients['shared_down'] += SCALE * np.outer(dropped, m * (B[i].T @ c))
            gradient_dropped[n] += SCALE * A.T @ (m * (B[i].T @ c))
        gradients['residual_up'] -= SCALE * np.outer(A_0 @ x, c)
        gradients['residual_down'] -= SCALE * np.outer(x, B_0.T @ c)
        gradient_x[n] = -SCALE * A_0.T @ B_0.T @ c
    return gradients, gradient_x, gradient_dropped


def close(found, expected, tolerance=1e-12):
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize('key', [None, MASKS], ids=['evaluation', 'training'])
def test_updates_and_all_gradients_in_float64(key):
    leaves, x_ND, dropped_ND, weights_NF = leaves_and_inputs()
    masks_ENR = np.ones((HEADS, TOKENS, RANK)) if key is None else masks_of(key)
    expected = by_hand(leaves, x_ND, dropped_ND, masks_ENR)
    right = gradients_by_hand(leaves, x_ND, dropped_ND, masks_ENR, weights_NF)
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (leaves, x_ND, dropped_ND))
        found = apply(*arguments, key)
        assert found.dtype == jnp.float64
        gradients = jax.grad(
            lambda *arguments: (apply(*arguments, key) * weights_NF).sum(), (0, 1, 2)
        )(*arguments)
    close(found, expected)
    for name, leaf in right[0].items():
        close(gradients[0][name], leaf)
    close(gradients[1], right[1])
    close(gradients[2], right[2])


def test_gradients_with_masks_are_central_differences():
    """The masks depend on the key alone, so the update is linear in each leaf."""
    leaves, x_ND, dropped_ND, weights_NF = leaves_and_inputs()
    masks_ENR, rng, step = masks_of(MASKS), np.random.default_rng(1), 1e-5
    with jax.enable_x64(True):
        gradients = jax.grad(
            lambda leaves: (apply(leaves, x_ND, dropped_ND, MASKS) * weights_NF).sum()
        )(jax.tree.map(jnp.asarray, leaves))
    for name, leaf in leaves.items():
        direction = rng.normal(size=leaf.shape)
        ahead, behind = (
            (
                by_hand(leaves | {name: leaf + by * direction}, x_ND, dropped_ND, masks_ENR)
                * weights_NF
            ).sum()
            for by in (step, -step)
        )
        expected = (ahead - behind) / (2 * step)
        assert abs(expected) > 0.1, name
        found = (np.asarray(gradients[name]) * direction).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_evaluation_is_the_reference_of_all_methods():
    leaves, x_ND, dropped_ND, _ = leaves_and_inputs()
    expected = reference.adapter_update(x_ND, leaves, CONFIG, dropped_ND)
    close(by_hand(leaves, x_ND, dropped_ND, np.ones((HEADS, TOKENS, RANK))), expected)


# Masks.


def many_masks(rate: float, tokens: int = 2000) -> np.ndarray:
    """Return the masks of the heads for many tokens, as factors of the entries, (E, N, R)."""
    structure = MultiHeadLoRA(HEADS, RANK, rate)
    up_EPF = jnp.eye(HEADS * RANK).reshape(HEADS, RANK, HEADS * RANK)
    found_NP = structure.masked_update(MASKS, jnp.ones((tokens, RANK)), {'up': up_EPF}, 1.0)
    return np.asarray(found_NP).reshape(-1, HEADS, RANK).swapaxes(0, 1)


@pytest.mark.parametrize('rate', [0.2, 0.5])
def test_masks_keep_the_mean_and_are_independent(rate):
    """Each entry is zero with the probability `rate`, and otherwise 1 / (1 - rate)."""
    masks_ENR = many_masks(rate)
    np.testing.assert_allclose(np.unique(masks_ENR), [0, 1 / (1 - rate)], rtol=1e-6)
    kept_ENR = masks_ENR > 0
    deviation = (rate * (1 - rate) / 2000) ** 0.5
    assert np.abs(kept_ENR.mean(axis=1) - (1 - rate)).max() < 5 * deviation
    # No two entries of a token have related masks: of different heads, and of different ranks.
    columns_PN = kept_ENR.swapaxes(1, 2).reshape(HEADS * RANK, -1)
    correlations = np.corrcoef(columns_PN) - np.eye(HEADS * RANK)
    assert np.abs(correlations).max() < 5 / 2000**0.5


def test_masks_depend_on_the_key_alone():
    first, again, other = masks_of(MASKS), masks_of(MASKS), masks_of(jax.random.key(6))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.2
    assert 0 < np.mean(first == 0) < 0.5


def test_a_lower_rank_has_a_part_of_the_masks():
    """Runs of different ranks, whose parameters are padded, can therefore be trained together."""
    low = replace_settings(CONFIG, rank=2, shared_rank=2, alpha=2 * SCALE)
    np.testing.assert_array_equal(masks_of(MASKS, low), masks_of(MASKS)[:, :, :2])


def test_no_masks_in_evaluation_or_with_the_rate_zero():
    leaves, x_ND, _, _ = leaves_and_inputs()
    plain = apply(leaves, x_ND)
    experts = LowRankExperts(CONFIG, OUTPUTS)
    variables = {'adapter': leaves, 'adapter_frozen': {name: leaves[name] for name in FROZEN}}
    # A random stream alone does not switch the masks on.
    np.testing.assert_array_equal(experts.apply(variables, x_ND, rngs={'dropout': MASKS}), plain)
    without = replace_settings(CONFIG, head_dropout=0.0)
    np.testing.assert_array_equal(apply(leaves, x_ND, None, MASKS, without), plain)
    assert np.abs(apply(leaves, x_ND, None, MASKS) - plain).max() > 0.1


def test_masks_of_one_head_are_those_of_dropout():
    key = jax.random.key(1)
    up_RF = np.eye(RANK)
    found = MultiHeadLoRA(1, RANK, 0.5).masked_update(
        key, jnp.ones((TOKENS, RANK)), {'up': up_RF[None]}, 1.0
    )
    expected = dropout(jax.random.split(key, 1)[0], jnp.ones((TOKENS, RANK)), 0.5)
    np.testing.assert_array_equal(found, expected)


# Start.


@pytest.mark.parametrize('sizes', [(512, 256), (256, 4096)])
def test_initial_values_are_normal_with_the_papers_scale(sizes):
    """The standard deviation is m^(1/4) / (√64 √n) for A, and m^(1/4) / (√64 √m) for B_i."""
    D, F = sizes
    leaves = method('mlora_heads').initialize(jax.random.key(0), D, F)
    expected = {'shared_down': F**0.25 / 8 / D**0.5, 'up': F**0.25 / 8 / F**0.5}
    for name, deviation in expected.items():
        values = np.asarray(leaves[name]).ravel() / deviation
        error = len(values) ** -0.5
        assert abs(values.mean()) < 4 * error, name
        np.testing.assert_allclose(values.std(), 1, rtol=0, atol=3 * error, err_msg=name)
        np.testing.assert_allclose((abs(values) < 1).mean(), 0.6827, atol=2.5 * error)
        np.testing.assert_allclose((abs(values) < 2).mean(), 0.9545, atol=2.5 * error)
    # Heads, ranks and the two projections are independent.
    both = np.asarray(leaves['up']).reshape(100, F), np.asarray(leaves['shared_down']).T
    rows_PI = np.concatenate([each[:, :256] for each in both])
    assert np.abs(np.corrcoef(rows_PI) - np.eye(len(rows_PI))).max() < 6 / 256**0.5
    np.testing.assert_array_equal(leaves['residual_down'], leaves['shared_down'])
    total_RF = np.asarray(leaves['up'], np.float64).sum(axis=0)
    np.testing.assert_allclose(leaves['residual_up'], total_RF, rtol=0, atol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('scale', [{}, {'rank_stabilized': True}])
def test_the_update_is_exactly_zero_at_the_start(dtype, scale):
    experts = LowRankExperts(method('mlora_heads', **scale), 40)
    x_ND = jnp.asarray(np.random.default_rng(0).normal(size=(30, 72)), dtype)
    variables = experts.init(jax.random.key(3), x_ND)
    for apply in (experts.apply, jax.jit(experts.apply)):
        assert not np.any(apply(variables, x_ND))
    # The masks change the update, but not its mean.
    masked = experts.apply(variables, x_ND, train=True, rngs={'dropout': MASKS})
    assert np.abs(masked).max() > 0.01


def test_masks_keep_the_zero_mean_of_the_start():
    experts = LowRankExperts(method('mlora_heads'), 40)
    x_ND = jnp.repeat(jnp.asarray(np.random.default_rng(0).normal(size=(1, 72))), 20_000, axis=0)
    variables = experts.init(jax.random.key(3), x_ND[:1])
    masked = np.asarray(experts.apply(variables, x_ND, train=True, rngs={'dropout': MASKS}))
    assert (np.abs(masked.mean(axis=0)) < 5 * masked.std(axis=0) / 20_000**0.5).all()


# Settings.


def test_settings_make_the_structure_and_come_back():
    settings = AdapterSettings(**SIZES, alpha=6.0, subspace='summed_heads', head_dropout=0.3)
    adapter = settings.build()
    assert adapter.structure == MultiHeadLoRA(HEADS, RANK, 0.3)
    assert settings_of(adapter) == settings
    assert replace_settings(adapter, dropout=0.5).structure == adapter.structure
    assert not adapter.has_router and adapter.num_logits == 0
    assert settings_of(method('mlora_heads')).head_dropout == 0.2
    assert settings_of(method('hydralora')).head_dropout == 0.0


@pytest.mark.parametrize('frozen', ['shared_down', 'up'])
def test_either_projection_can_be_frozen(frozen):
    """Both start at random, unlike those of other methods."""
    adapter = method('mlora_heads', frozen=(frozen,))
    assert adapter.collection(frozen) == 'adapter_frozen'
    assert [adapter.collection(name) for name in FROZEN] == ['adapter_frozen'] * 2


def test_merged_kernel_adds_the_update():
    leaves, x_ND, _, _ = leaves_and_inputs()
    kernel_DF = np.random.default_rng(2).normal(size=(INPUTS, OUTPUTS))
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, leaves)
        merged = CONFIG.structure.merged_kernel(jnp.asarray(kernel_DF), wide, CONFIG.scale)
    expected = x_ND @ kernel_DF + reference.adapter_update(x_ND, leaves, CONFIG)
    close(x_ND @ np.asarray(merged), expected, 1e-6)
