"""Steps that are left out because their loss is not finite.

Two programs are compared, whose roundings are closer if the compiler optimizes both.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malora_jax.training import step
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer, with_schedule_step
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model
from tests.helpers.steps import ADAMW, assert_close, make_hyperparameters, new_state

pytestmark = pytest.mark.slow


def test_a_step_that_is_left_out_changes_nothing_but_its_number():
    model = tiny_model(small_method('malora'))
    variables = random_variables(model)
    optimizer, schedule = make_optimizer(ADAMW, 10), learning_rate_schedule(ADAMW, 10)
    batch = packed_batch([[20, 12], [31]], 32)
    train_step = step.make_train_step(model, optimizer, schedule, 2, skip_nonfinite=True)
    given = make_hyperparameters(model.adapter)
    plain_step = step.make_train_step(model, optimizer, schedule, 2)
    bad = batch | {'loss_mask': batch['loss_mask'] * np.float32(math.inf)}
    state, found = train_step(new_state(variables, optimizer, 3), variables['params'], bad, given)
    assert found['skipped'] == 1
    before = new_state(variables, optimizer, 3)
    assert int(state.step) == 4
    # The learning rate schedule still advances.
    assert optax.tree.get_all_with_path(state.opt_state, 'count')[1][1] == 4
    for a, b in zip(
        jax.tree.leaves((state.adapter, state.opt_state)),
        jax.tree.leaves((before.adapter, with_schedule_step(before.opt_state, jnp.int32(4)))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    # A step with finite loss equals one without this option.
    state, found = train_step(new_state(variables, optimizer, 3), variables['params'], batch, given)
    assert found['skipped'] == 0
    expected, _ = plain_step(before, variables['params'], batch, given)
    assert_close(state.adapter, expected.adapter, 1e-6)


@pytest.mark.parametrize('skipped', [1, 3])
def test_after_steps_that_are_left_out_the_next_update_is_that_of_a_first_gradient(skipped):
    """Adam's bias correction counts gradients that it has seen; the schedule counts steps."""
    model = tiny_model(small_method('malora', dropout=0.0))
    variables = random_variables(model)
    config = dataclasses.replace(ADAMW, weight_decay=0.0)
    optimizer, schedule = make_optimizer(config, 10), learning_rate_schedule(config, 10)
    batch = packed_batch([[20, 12], [31]], 32)
    bad = batch | {'loss_mask': batch['loss_mask'] * np.float32(math.nan)}
    train_step = step.make_train_step(model, optimizer, schedule, 2, skip_nonfinite=True)

    given = make_hyperparameters(model.adapter, config)

    def update(skipped):
        state = new_state(variables, optimizer)
        for _ in range(skipped):
            state, _ = train_step(state, variables['params'], bad, given)
        state, found = train_step(state, variables['params'], batch, given)
        assert found['learning_rate'] == given.learning_rate * schedule(skipped)
        change = jax.tree.map(jnp.subtract, state.adapter, variables['adapter'])
        return jax.tree.map(lambda leaf: leaf / found['learning_rate'], change)

    assert_close(update(skipped), update(0), 2e-3)
