"""Mixed precision: bfloat16 base model, float32 adapter, and losses close to float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax import training
from malora_jax.models import Decoder
from malora_jax.training.evaluate import evaluate
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.step import make_train_step
from tests.helpers.models import (
    STRUCTURES,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
)
from tests.helpers.runs import toy_run_config
from tests.helpers.steps import ADAMW, make_hyperparameters, new_state, record_gradients

NUM_TASKS = 2
BATCH = packed_batch([(10, 9), (7, 8, 9)], 24)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


def small_model(name: str, dtype: str) -> Decoder:
    return tiny_model(small_method(name, dropout=0.0, targets=('q', 'down')), dtype=dtype)


def one_step(name: str, dtype: str, variables):
    """Return the state, the metrics and the gradients after one step."""
    model = small_model(name, dtype)
    optimizer = record_gradients(make_optimizer(ADAMW, 10))
    train_step = make_train_step(model, optimizer, lambda _: 0.0, NUM_TASKS)
    state = new_state(variables, optimizer)
    state, metrics = train_step(
        state, variables['params'], BATCH, make_hyperparameters(model.adapter)
    )
    return state, metrics, state.opt_state[0]


@pytest.mark.parametrize('name', STRUCTURES)
def test_a_step_is_near_that_of_float32(name):
    """The weights are equal, but every product is rounded to 8 bits (0.4%).

    Losses agree to 1%. The directions of the whole gradients agree to a cosine of 0.95, because a
    few tokens choose another expert.
    """
    rounded = random_variables(small_model(name, 'bfloat16'))
    exact = rounded | {'params': jax.tree.map(jnp.float32, rounded['params'])}
    state, metrics, gradients = one_step(name, 'bfloat16', rounded)
    _, expected, right = one_step(name, 'float32', exact)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(rounded['params'])} == {
        'bfloat16',
        'float32',
    }
    assert metrics.pop('examples').dtype == jnp.int32  # A count.
    for leaf in jax.tree.leaves((state.adapter, gradients, metrics)):
        assert leaf.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.opt_state)} == {'float32', 'int32'}
    assert metrics['loss'] != expected['loss']
    for key in ('loss', 'task_nll', 'balance_loss'):
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-2, err_msg=key)
    a, b = (np.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (gradients, right))
    assert a @ b > 0.95 * np.linalg.norm(a) * np.linalg.norm(b)


def test_a_run_trains_evaluates_and_generates(tiny_weights, tmp_path):
    config = toy_run_config(
        tiny_weights,
        'dora',
        model__dtype='bfloat16',
        adapter__num_experts=1,
        data__validation=2,
        training__steps=1,
        training__evaluate_every=1,
        training__accumulate=2,
        training__remat='full',
    )
    results = training.train(config, tmp_path)
    assert results['best_step'] == 1
    assert 2 * 96 < results['tokens'] <= 2 * 2 * 96  # Two batches of two rows, nearly full.
    found = evaluate(config, tmp_path)
    assert found['average'] == pytest.approx(results['average']['after'])
