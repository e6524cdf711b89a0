"""Masks of the K largest scores, against a stable sort in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from malora_jax.adapters.top_k import top_k_mask


def expected_mask(scores: np.ndarray, top_k: int) -> np.ndarray:
    mask = np.zeros_like(scores)
    best = np.argsort(-scores, axis=1, kind='stable')[:, :top_k]
    np.put_along_axis(mask, best, 1, axis=1)
    return mask


@settings(deadline=None, max_examples=60)
@given(
    scores=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(9)),
        elements=st.floats(-2, 2, width=16) | st.sampled_from([0.0, -0.0]),
    ),
    top_k=st.integers(1, 9),
)
def test_exactly_k_are_kept_and_ties_go_to_the_lower_index(scores, top_k):
    mask = jax.jit(top_k_mask, static_argnums=1)(jnp.asarray(scores), top_k)
    np.testing.assert_array_equal(mask, expected_mask(scores, top_k))


@pytest.mark.parametrize('top_k', [1, 4, 5, 32, 127, 128])
def test_many_experts(top_k):
    scores = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    scores[:, 17] = scores[:, 90]
    np.testing.assert_array_equal(
        top_k_mask(jnp.asarray(scores), top_k), expected_mask(scores, top_k)
    )
