"""Blockwise attention with and without a KV cache, against full attention and plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.models.attention import (
    attend,
    attend_cache,
    attend_past,
    attention_mask,
    update_cache,
)

HEADS, KV_HEADS, WIDTH = 6, 2, 8


def inputs(length: int, dtype=jnp.float32, rows: int = 2) -> tuple[jax.Array, ...]:
    """Return random queries, keys and values, and a cotangent of the output."""
    rng = np.random.default_rng(length)
    shapes = [(rows, length, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def segments_of(lengths: list[list[int]], total: int) -> np.ndarray:
    """Return segment ids (B, T) of packed examples with these lengths; the rest is padding."""
    segments_BT = np.zeros((len(lengths), total), np.int32)
    for row, of_row in zip(segments_BT, lengths, strict=True):
        found = np.repeat(np.arange(1, len(of_row) + 1), of_row)[:total]
        row[: len(found)] = found
    return segments_BT


def by_numpy(q_BTHC, k_BTKC, v_BTKC, segments_BT) -> np.ndarray:
    """Compute attention in float64, one query at a time, over its visible keys."""
    q_BTHC, k_BTKC, v_BTKC = (np.float64(x) for x in (q_BTHC, k_BTKC, v_BTKC))
    out_BTHC = np.zeros_like(q_BTHC)
    for b, t, h in np.ndindex(q_BTHC.shape[:3]):
        of_keys = (b, np.flatnonzero(segments_BT[b, : t + 1] == segments_BT[b, t]))
        keys, values = (x[(*of_keys, h // (HEADS // KV_HEADS))] for x in (k_BTKC, v_BTKC))
        scores = keys @ q_BTHC[b, t, h] / np.sqrt(WIDTH)
        weights = np.exp(scores - scores.max())
        out_BTHC[b, t, h] = weights @ values / weights.sum()
    return out_BTHC


def all_at_once(q_BTHC, k_BTKC, v_BTKC, segments_BT):
    """Compute attention with all scores in memory and JAX's automatic derivative."""
    T, H, C = q_BTHC.shape[1:]
    k_BTHC, v_BTHC = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BTKC, v_BTKC))
    scores_BHTS = jnp.einsum('BTHC,BSHC->BHTS', q_BTHC, k_BTHC) * C**-0.5
    visible_BTS = attention_mask(jnp.arange(T), segments_BT, segments_BT)
    weights_BHTS = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores_BHTS, -1e30))
    return jnp.einsum('BHTS,BSHC->BTHC', weights_BHTS, v_BTHC)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, q, k, v, cotangent, segments):
    out, pull = jax.vjp(lambda q, k, v: function(q, k, v, segments), q, k, v)
    return (out, *pull(cotangent))


@pytest.mark.parametrize('length', [1, 7, 128, 129, 300])
def test_each_query_sees_the_earlier_ones_of_its_segment(length):
    q, k, v, _ = inputs(length)
    segments = segments_of([[3, 60, 100], [length]], length)
    found = jax.jit(attend)(q, k, v, segments)
    np.testing.assert_allclose(found, by_numpy(q, k, v, segments), atol=2e-6)


@pytest.mark.parametrize('length', [1, 128, 129, 257, 1100])
def test_values_and_gradients_are_those_of_all_scores_at_once(length):
    *arrays, cotangent = inputs(length)
    segments = segments_of([[length // 3, length // 2], [1, 130, 5]], length)
    found = with_gradients(attend, *arrays, cotangent, segments)
    right = with_gradients(all_at_once, *arrays, cotangent, segments)
    for ours, expected in zip(found, right, strict=True):
        # Gradients of a single token are zero except for rounding.
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6 * scale)


def test_in_bfloat16_as_exact_as_its_rounding():
    """Compare with float32 on the same rounded inputs: errors of a few units in the last place."""
    *arrays, cotangent = inputs(200, jnp.bfloat16)
    segments = segments_of([[60, 140], [150]], 200)
    found = with_gradients(attend, *arrays, cotangent, segments)
    exact = with_gradients(
        all_at_once, *(x.astype(jnp.float32) for x in (*arrays, cotangent)), segments
    )
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(np.float32(ours) - expected)
        assert error.max() < 2**-6 * np.abs(expected).max()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_packed_equals_alone(lengths, random):
    """Each packed example has the values and gradients that it has in its own row."""
    total = 260
    *arrays, cotangent = inputs(total, rows=1)
    segments = segments_of([lengths], total)
    packed = with_gradients(attend, *arrays, cotangent, segments)
    # The row may be full before the last example starts.
    number = random.choice([n for n in range(len(lengths)) if sum(lengths[:n]) < total])
    start, length = sum(lengths[:number]), lengths[number]
    here = slice(start, min(start + length, total))
    # The example is shifted to the front of a row whose rest is padding.
    alone = [jnp.roll(x, -start, axis=1) for x in (*arrays, cotangent)]
    one = segments_of([[here.stop - here.start]], total)
    found = with_gradients(attend, *alone, one)
    for ours, expected in zip(packed, found, strict=True):
        np.testing.assert_allclose(
            ours[:, here], expected[:, : here.stop - here.start], rtol=1e-5, atol=1e-5
        )


def test_scores_far_apart_do_not_overflow():
    q, k, v, cotangent = inputs(140)
    segments = np.ones((2, 140), np.int32)
    found = with_gradients(attend, 300 * q, 300 * k, v, cotangent, segments)
    assert all(np.isfinite(array).all() for array in found)
    np.testing.assert_allclose(found[0], by_numpy(300 * q, 300 * k, v, segments), atol=1e-4)


def test_no_scores_are_kept_for_the_gradient():
    q, k, v, _ = inputs(512, rows=1)
    segments = np.ones((1, 512), np.int32)
    for function, most in ((attend, q.size), (all_at_once, HEADS * 512**2)):
        _, pull = jax.vjp(lambda *x, f=function: f(*x, segments), q, k, v)
        assert max(np.size(kept) for kept in jax.tree.leaves(pull)) == most


@pytest.mark.parametrize('dtype, atol', [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_new_tokens_see_their_row_s_past_and_those_before_them(dtype, atol):
    """Decode 4 new tokens after 5 and 11 cached ones, with 16 cache positions.

    The results equal the last 4 of 9 and of 15 tokens.
    """
    q, k, v, _ = (x.astype(dtype) for x in inputs(15))
    lengths, new = np.array([5, 11]), 4
    places = lengths[:, None] + np.arange(new)
    at = (np.arange(2)[:, None], places)
    past_k, past_v = cached(k, v, lengths)
    new_k, new_v = k[at].transpose(0, 2, 3, 1), v[at].transpose(0, 2, 1, 3)
    found = jax.jit(attend_past)(q[at], new_k, new_v, past_k, past_v, lengths)
    assert found.dtype == dtype
    whole = by_numpy(*(np.asarray(x, np.float32) for x in (q, k, v)), np.ones((2, 15), np.int32))
    np.testing.assert_allclose(np.asarray(found, np.float32), whole[at], atol=atol)


@pytest.mark.parametrize('dtype, atol', [('float32', 2e-6), ('bfloat16', 2e-2)])
@pytest.mark.parametrize('rows', [1, 2])
def test_a_new_token_in_the_cache_sees_its_row_s_past(rows, dtype, atol):
    """Write a token behind 14 and 11 cached ones, and attend to the cache."""
    q, k, v, _ = (x[:rows].astype(dtype) for x in inputs(15))
    lengths = np.array([14, 11])[:rows]
    at = (np.arange(rows)[:, None], lengths[:, None])
    new_k, new_v = k[at].transpose(0, 2, 3, 1), v[at].transpose(0, 2, 1, 3)
    caches = jax.jit(update_cache)(*cached(k, v, lengths), new_k, new_v, lengths)
    found = jax.jit(attend_cache)(q[at], *caches, lengths)
    assert found.dtype == dtype
    ones = np.ones((rows, 15), np.int32)
    whole = by_numpy(*(np.asarray(x, np.float32) for x in (q, k, v)), ones)
    np.testing.assert_allclose(np.asarray(found, np.float32), whole[at], atol=atol)


def test_a_full_row_keeps_its_other_tokens():
    _, k, v, _ = inputs(15)
    past_k, past_v = cached(k, v, np.array([5, 16]))
    new = jnp.ones((2, k.shape[2], WIDTH, 1)), jnp.ones((2, k.shape[2], 1, WIDTH))
    found_k, found_v = update_cache(past_k, past_v, *new, np.array([5, 16]))
    np.testing.assert_array_equal(found_k[1, :, :, :15], past_k[1, :, :, :15])
    np.testing.assert_array_equal(found_v[1, :, 15], 1)


def cached(k_BTKC, v_BTKC, lengths):
    """Return caches of 16 positions with the first tokens of each row, and 1e3 behind them."""
    rest = jnp.full((len(lengths), k_BTKC.shape[2], 16, WIDTH), 1e3)
    caches = [
        rest.at[:, :, :15].set(x.transpose(0, 2, 1, 3)).astype(x.dtype) for x in (k_BTKC, v_BTKC)
    ]
    for row, length in enumerate(lengths):
        caches = [cache.at[row, :, length:].set(1e3) for cache in caches]
    return caches[0].swapaxes(2, 3), caches[1]
