"""The optimizer by hand, the rate of each kind of leaf, and the schedule."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import METHOD_NAMES, random_variables, small_method, tiny_model
from step_helpers import ADAMW

from malora_jax.adapters import trees
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer

# Powers of two: a product with one is exact.
RATES = {'router': 0.5, 'down': 2.0, 'core': 4.0, 'up': 16.0, 'magnitude': 0.25}


def test_clipping_and_weight_decay():
    """One step from zero moments: Adam's update is the sign, whatever the clipped scale."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_ratio=0.0, schedule='linear', weight_decay=0.5, clip_norm=1e-3
    )
    optimizer = make_optimizer(config, 10)
    params = {'up': jnp.array([1.0, -2.0, 3.0])}
    gradients = {'up': jnp.array([30.0, -40.0, 0.0])}
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    expected = -0.1 * (np.array([1, -1, 0]) + 0.5 * np.array([1, -2, 3]))
    np.testing.assert_allclose(updates['up'], expected, rtol=1e-4)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)]
    np.testing.assert_allclose(moments[0], 0.1 * 1e-3 * np.array([0.6, -0.8, 0]), rtol=1e-5)


# The rate of each kind of leaf.


def updates_of(config: OptimizerConfig, adapter, steps: int = 3) -> tuple[list, optax.OptState]:
    """Each step's updates, and the last state; the gradients are random, the same each time."""
    optimizer, rng = make_optimizer(config, 10), np.random.default_rng(0)
    state, made = optimizer.init(adapter), []
    for _ in range(steps):
        gradients = jax.tree.map(lambda a: jnp.float32(rng.standard_normal(a.shape)), adapter)
        updates, state = optimizer.update(gradients, state, adapter)
        made.append(updates)
    return made, state


@pytest.mark.parametrize('name', METHOD_NAMES)
def test_each_leafs_update_is_multiplied_by_its_rate_and_nothing_else_changes(name):
    adapter = random_variables(tiny_model(small_method(name)))['adapter']
    rated = dataclasses.replace(ADAMW, **{f'{kind}_rate': rate for kind, rate in RATES.items()})
    plain, plain_state = updates_of(ADAMW, adapter)
    found, state = updates_of(rated, adapter)
    for one, other in zip(plain, found, strict=True):
        for (path, a), (_, b) in zip(
            trees.named_leaves(one), trees.named_leaves(other), strict=True
        ):
            kind = path.rsplit('/', 1)[-1].removeprefix('shared_')
            assert np.asarray(a).all()
            np.testing.assert_array_equal(RATES[kind] * a, b, err_msg=path)
    for a, b in zip(jax.tree.leaves(plain_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_rates_the_updates_are_those_of_adamw_to_the_bit():
    adapter = random_variables(tiny_model(small_method('malora')))['adapter']
    plain = optax.chain(
        optax.clip_by_global_norm(ADAMW.clip_norm),
        optax.adamw(learning_rate_schedule(ADAMW, 10), weight_decay=ADAMW.weight_decay),
    )
    found, state = updates_of(ADAMW, adapter, steps=1)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda a: jnp.float32(rng.standard_normal(a.shape)), adapter)
    expected, plain_state = plain.update(gradients, plain.init(adapter), adapter)
    for made, other in ((found[0], expected), (state, plain_state)):
        for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_leaf_without_a_rate_is_refused():
    with pytest.raises(ValueError, match=r"Parameter labels: \['gain'\]"):
        make_optimizer(ADAMW, 10).init({'q': {'gain': jnp.ones(3)}})


# The schedule.


def schedule_of(kind: str, warmup_ratio: float, steps: int) -> np.ndarray:
    config = OptimizerConfig(
        learning_rate=2.0, warmup_ratio=warmup_ratio, schedule=kind, weight_decay=0.0, clip_norm=1.0
    )
    schedule = learning_rate_schedule(config, steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


@pytest.mark.parametrize(
    'kind, last', [('linear', 2 / 90), ('cosine', 1 + math.cos(math.pi * 89 / 90))]
)
def test_schedule_by_hand(kind, last):
    rates = schedule_of(kind, 0.1, 100)
    np.testing.assert_allclose(rates[:11], [0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2], 1e-5)
    np.testing.assert_allclose(rates[55], 1.0, rtol=1e-5)
    np.testing.assert_allclose(rates[99], last, rtol=1e-3)
    np.testing.assert_allclose(rates[100], 0, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(['linear', 'cosine']), st.floats(0, 0.99), st.integers(1, 40))
def test_schedule_rises_to_the_peak_then_falls_and_is_never_idle(kind, ratio, steps):
    rates = schedule_of(kind, ratio, steps)
    warmup = round(ratio * steps)
    top = max(warmup - 1, 0)
    np.testing.assert_allclose(rates[top], 2, rtol=1e-5)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) <= 1e-6).all()
    assert (rates[:steps] > 0).all()
