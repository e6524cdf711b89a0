import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.models import decoder
from malora_jax.training import objective

WIDTH, VOCABULARY = 16, 50
TOKENS = 2 * objective.CHUNK_TOKENS + 40
COUNTS = (
    0,
    1,
    objective.SMALL_CHUNK_TOKENS,
    objective.SMALL_CHUNK_TOKENS + 1,
    objective.CHUNK_TOKENS - 1,
    objective.CHUNK_TOKENS,
    objective.CHUNK_TOKENS + 1,
    TOKENS,
)


def reference(hidden_ND, head_VD, targets_N, weights_NG, cotangent_G):
    """Return the value, and the gradient of value · cotangent by the hidden states, in float64."""
    hidden, head, weights = (np.asarray(a, np.float64) for a in (hidden_ND, head_VD, weights_NG))
    logits = hidden @ head.T
    logits -= logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    rows = np.arange(len(targets_N))
    value = -log_probs[rows, targets_N] @ weights
    difference = np.exp(log_probs)
    difference[rows, targets_N] -= 1
    return value, (difference @ head) * (weights @ np.float64(cotangent_G))[:, None]


@functools.partial(jax.jit, static_argnames='chunk')
def computed(hidden_ND, head_VD, targets_N, weights_NG, cotangent_G, chunk=None):
    """Return the value and the gradients by hidden states and head, compiled."""

    def scalar(hidden_ND, head_VD):
        value_G = objective.cross_entropy(hidden_ND, head_VD, targets_N, weights_NG)
        return (value_G * cotangent_G).sum(), value_G

    gradients, value_G = jax.grad(scalar, argnums=(0, 1), has_aux=True)(hidden_ND, head_VD)
    return value_G, *gradients


def arguments(seed: int, tokens: int, count: int, groups: int):
    """Return random arguments in which `count` tokens carry loss with random weights."""
    rng = np.random.default_rng(seed)
    hidden_ND = rng.standard_normal((tokens, WIDTH), np.float32)
    head_VD = rng.standard_normal((VOCABULARY, WIDTH), np.float32)
    targets_N = rng.integers(0, VOCABULARY, tokens).astype(np.int32)
    weights_NG = np.zeros((tokens, groups), np.float32)
    carries = rng.choice(tokens, count, replace=False)
    weights_NG[carries] = rng.uniform(0.1, 2, (count, groups))
    # Some tokens carry loss in only one group.
    weights_NG[carries[::3], 1:] = 0
    cotangent_G = rng.uniform(0.5, 2, groups).astype(np.float32)
    return hidden_ND, head_VD, targets_N, weights_NG, cotangent_G


def assert_right(found, expected, tolerance=1e-5):
    """Check values with relative tolerance, and gradients relative to the largest entry."""
    (value, gradient, head_gradient), (right_value, right_gradient) = found, expected
    np.testing.assert_allclose(value, right_value, rtol=tolerance, atol=tolerance)
    scale = max(np.abs(right_gradient).max(), 1)
    np.testing.assert_allclose(gradient, right_gradient, rtol=0, atol=tolerance * scale)
    assert not np.asarray(head_gradient).any(), 'the head is frozen'


@pytest.mark.parametrize('count', COUNTS)
def test_value_and_gradient(count):
    args = arguments(count, TOKENS, count, groups=3)
    found, expected = computed(*args), reference(*args)
    assert_right(found, expected)
    assert bool(count) == np.asarray(found[1]).any()
    assert found[0].dtype == np.float32


@pytest.mark.parametrize('tokens', [1, 5, objective.CHUNK_TOKENS])
def test_batches_no_larger_than_a_chunk(tokens):
    args = arguments(tokens, tokens, tokens, groups=1)
    assert_right(computed(*args), reference(*args))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 30), groups=st.sampled_from([1, 2, 5]))
def test_any_number_of_small_chunks(seed, count, groups):
    args = arguments(seed, 30, count, groups)
    original, objective.CHUNK_TOKENS = objective.CHUNK_TOKENS, 7
    try:
        found = computed(*args, chunk=7)
    finally:
        objective.CHUNK_TOKENS = original
    assert_right(found, reference(*args))


def test_without_compilation():
    args = [jnp.asarray(a) for a in arguments(0, 40, 11, 2)]
    value = objective.cross_entropy(*args[:4])
    np.testing.assert_allclose(value, reference(*args)[0], rtol=1e-5)


def test_large_logits_do_not_overflow():
    hidden, head, *rest = arguments(0, 40, 11, 2)
    args = (100 * hidden, 10 * head, *rest)
    assert_right(computed(*args), reference(*args))


def test_targets_where_no_loss_is_do_not_matter():
    hidden, head, targets, weights, cotangent = arguments(0, TOKENS, 100, 2)
    other = np.where(weights.any(axis=-1), targets, 0).astype(np.int32)
    assert (other != targets).any()
    for a, b in zip(
        computed(hidden, head, targets, weights, cotangent),
        computed(hidden, head, other, weights, cotangent),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_bfloat16():
    """Softmax and result are rounded to 2^-8 each, compared with the exact gradient."""
    hidden, head, *rest = arguments(0, TOKENS, 300, 2)
    args = (jnp.bfloat16(hidden), jnp.bfloat16(head), *rest)
    found, expected = computed(*args), reference(*args)
    assert found[0].dtype == jnp.float32
    assert found[1].dtype == jnp.bfloat16
    # Logits are summed in float32, so the value is as exact as in float32.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    error = np.abs(np.asarray(found[1], np.float64) - expected[1])
    assert error.max() < 2**-7 * np.abs(expected[1]).max()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_sixth_of_the_memory_of_full_logits(dtype):
    """Compile, but do not run, with Llama 3's vocabulary and 8,192 tokens that carry loss."""
    T, V, D = 8192, 128_256, 2048

    def full_logits(hidden_TD, head_VD, targets_T, weights_TG):
        logits_TV = decoder.logits(hidden_TD, head_VD)
        right_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=1)[:, 0]
        nll_T = jax.nn.logsumexp(logits_TV, axis=-1) - right_T
        return (nll_T[:, None] * weights_TG).sum()

    def in_chunks(*arguments):
        return objective.cross_entropy(*arguments).sum()

    shapes = (((T, D), dtype), ((V, D), dtype), ((T,), jnp.int32), ((T, 1), jnp.float32))
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    full, ours = (
        jax.jit(jax.value_and_grad(function)).lower(*arguments).compile().memory_analysis()
        for function in (full_logits, in_chunks)
    )
    assert full.temp_size_in_bytes > 6 * ours.temp_size_in_bytes
