"""The optimizer computed by hand, the learning rate of each kind of leaf, and the schedule."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.adapters import trees
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tests.helpers.models import METHOD_NAMES, small_method, tiny_model
from tests.helpers.steps import ADAMW

# Powers of two, so that products with them are exact.
RATES = {'router': 0.5, 'down': 2.0, 'core': 4.0, 'up': 16.0, 'magnitude': 0.25}


def test_clipping_and_weight_decay():
    """In the first step, Adam's update is the gradient's sign, regardless of clipping."""
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


# Learning rate multipliers of each kind of leaf.

LEAVES = ('router', 'down', 'shared_down', 'core', 'up', 'shared_up', 'magnitude')
ADAPTER = {'q': {name: 0.1 * jnp.arange(1.0, 4.0) for name in LEAVES}}


def updates_of(optimizer: optax.GradientTransformation) -> tuple[list, optax.OptState]:
    """Return the updates of three steps with random gradients, and the last state."""
    state, made = optimizer.init(ADAPTER), []
    for seed in range(3):
        draws = np.random.default_rng(seed).standard_normal((len(LEAVES), 3))
        gradients = {'q': dict(zip(LEAVES, jnp.float32(draws), strict=True))}
        updates, state = optimizer.update(gradients, state, ADAPTER)
        made.append(updates)
    return made, state


PLAIN = optax.chain(
    optax.clip_by_global_norm(ADAMW.clip_norm),
    optax.adamw(
        lambda step: ADAMW.learning_rate * learning_rate_schedule(ADAMW, 10)(step),
        weight_decay=ADAMW.weight_decay,
    ),
)


@pytest.mark.parametrize('rates', [RATES, dict.fromkeys(RATES, 1.0)], ids=['rates', 'none'])
def test_each_update_of_adamw_is_multiplied_by_its_rate_and_nothing_else_changes(rates):
    """Updates and state are bitwise equal."""
    config = dataclasses.replace(ADAMW, **{f'{kind}_rate': rate for kind, rate in rates.items()})
    expected, plain_state = updates_of(PLAIN)
    found, state = updates_of(make_optimizer(config, 10))
    for plain, made in zip(expected, found, strict=True):
        for name in LEAVES:
            update = rates[name.removeprefix('shared_')] * plain['q'][name]
            assert np.asarray(update).all()
            np.testing.assert_array_equal(made['q'][name], update, err_msg=name)
    for a, b in zip(jax.tree.leaves(plain_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', METHOD_NAMES)
def test_every_leaf_of_every_method_has_a_rate(name):
    adapter = nn.unbox(abstract_variables(tiny_model(small_method(name))))['adapter']
    moments = jax.eval_shape(make_optimizer(ADAMW, 10).init, adapter)
    assert trees.count(moments) == 2 * trees.count(adapter) + 2


@pytest.mark.parametrize('name', ['lora', 'malora', 'adamole', 'd2mora', 'mtl_lora'])
def test_new_names_of_leaves_do_not_change_the_state_in_checkpoints(name):
    """A checkpoint stores an entry for each label; with others, earlier runs could not be read."""
    adapter = nn.unbox(abstract_variables(tiny_model(small_method(name))))['adapter']
    state = jax.eval_shape(make_optimizer(ADAMW, 10).init, adapter)
    labels = {'router', 'down', 'shared_down', 'core', 'up', 'shared_up', 'magnitude'}
    assert optax.tree.get(state, 'inner_states').keys() == labels


def test_a_leaf_without_a_rate_is_refused():
    with pytest.raises(ValueError, match=r"Parameter labels: \['gain'\]"):
        make_optimizer(ADAMW, 10).init({'q': {'gain': jnp.ones(3)}})


# The schedule.


def schedule_of(kind: str, warmup_ratio: float, steps: int) -> np.ndarray:
    config = OptimizerConfig(
        learning_rate=2.0, warmup_ratio=warmup_ratio, schedule=kind, weight_decay=0.0, clip_norm=1.0
    )
    schedule = learning_rate_schedule(config, steps)
    return np.array([2.0 * float(schedule(step)) for step in range(steps + 1)])


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
