"""One compiled step serves all hyperparameter values, and contains only configured features."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from malora_jax.adapters import trees
from malora_jax.adapters.load_balancing import mean_balance_loss
from malora_jax.models import Decoder
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.step import (
    losses,
    make_gradient_function,
    make_train_step,
)
from tests.helpers.jaxprs import equations
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model
from tests.helpers.steps import (
    ADAMW,
    assert_close,
    make_hyperparameters,
    new_state,
    record_gradients,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]
BATCH, NUM_TASKS, STEP = packed_batch([(10, 9), (7, 8, 9)], 24), 2, 3
OTHER = dataclasses.replace(
    ADAMW,
    learning_rate=3e-3,
    weight_decay=0.1,
    clip_norm=0.05,
    router_rate=2.0,
    down_rate=3.0,
    core_rate=0.5,
    up_rate=16.0,
    magnitude_rate=4.0,
)
# Optimizer config, adapter fields and seed of two runs.
RUNS = (
    (ADAMW, {'alpha': 8.0, 'dropout': 0.1, 'balance_weight': 0.01}, 0),
    (OTHER, {'alpha': 3.0, 'dropout': 0.3, 'balance_weight': 0.5}, 5),
)


def train_step_of(model: Decoder, config: OptimizerConfig):
    optimizer = record_gradients(make_optimizer(config, 10))
    step = make_train_step(model, optimizer, learning_rate_schedule(config, 10), NUM_TASKS)
    return step, optimizer


def gradients_by_constants(model: Decoder, variables, seed: int):
    """Return the gradient of a run whose hyperparameters are compiled as constants."""
    key = jax.random.fold_in(jax.random.key(seed), STEP)

    @jax.jit
    @jax.grad
    def gradient(adapter, batch):
        sums = losses(model, variables | {'adapter': adapter}, batch, NUM_TASKS, key)
        balance = model.adapter.router.balance_weight * mean_balance_loss(
            sums.routing, model.adapter
        )
        return sums.nll.sum() / batch['loss_mask'].sum() + balance

    return gradient(variables['adapter'], BATCH)


@pytest.mark.parametrize('name', ['dora', 'malora', 'malora_dispatch'])
def test_one_program_trains_runs_with_other_hyperparameters(name):
    models = [tiny_model(small_method(name, **fields)) for _, fields, _ in RUNS]
    variables = random_variables(models[0])
    step, optimizer = train_step_of(models[0], ADAMW)
    shapes = (new_state(variables, optimizer), variables['params'], BATCH)
    program = step.lower(*shapes, make_hyperparameters(models[0].adapter)).compile()
    adapters = []
    for model, (config, _, seed) in zip(models, RUNS, strict=True):
        own_step, own_optimizer = train_step_of(model, config)
        given = make_hyperparameters(model.adapter, config, seed)
        (found, metrics), (expected, expected_metrics) = (
            each(new_state(variables, own_optimizer, STEP), variables['params'], BATCH, given)
            for each in (program, own_step)
        )
        for (path, a), (_, b) in zip(
            trees.named_leaves((found, metrics)),
            trees.named_leaves((expected, expected_metrics)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b, err_msg=path)
        gradients, own_state = found.opt_state
        assert_close(gradients, gradients_by_constants(model, variables, seed), 2e-5)
        # The optimizer of this config, with its hyperparameters as constants.
        start = new_state(variables, own_optimizer, STEP)
        updates, state = make_optimizer(config, 10).update(
            gradients, start.opt_state[1], start.adapter
        )
        assert_close(found.adapter, optax.apply_updates(start.adapter, updates), 1e-6)
        mu, expected_mu = (optax.tree.get(each, 'mu') for each in (own_state, state))
        assert_close(mu, expected_mu, 1e-6)
        adapters.append(found.adapter)
    for (path, a), (_, b) in zip(*map(trees.named_leaves, adapters), strict=True):
        assert np.abs(a - b).max() > 1e-3, path


def gradient_jaxpr(**fields):
    """Return a step's traced gradient; its last inputs are dropout rate and balance weight."""
    model = tiny_model(small_method('malora', **fields))
    variables = random_variables(model)
    state = new_state(variables, make_optimizer(ADAMW, 10))
    gradients = make_gradient_function(model, NUM_TASKS)
    return jax.make_jaxpr(gradients)(
        state, variables['params'], BATCH, make_hyperparameters(model.adapter)
    )


def is_read(jaxpr, index: int) -> bool:
    return any(jaxpr.jaxpr.invars[index] in equation.invars for equation in jaxpr.eqns)


@pytest.mark.parametrize('rate', [0.0, 0.1])
def test_a_mask_is_drawn_only_with_dropout(rate):
    jaxpr = gradient_jaxpr(dropout=rate)
    draws = [each for each, _ in equations(jaxpr.jaxpr) if each.primitive.name == 'random_bits']
    assert bool(draws) == is_read(jaxpr, -2) == (rate > 0)


@pytest.mark.parametrize('weight', [0.0, 0.01])
def test_the_objective_has_a_balance_loss_only_with_a_weight(weight):
    jaxpr = gradient_jaxpr(balance_weight=weight)
    assert is_read(jaxpr, -1) == (weight > 0)
