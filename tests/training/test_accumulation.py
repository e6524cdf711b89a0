"""Gradient accumulation, compared with one large batch and with the explicit formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malora_jax.adapters import AdapterConfig, method, trees
from malora_jax.adapters.load_balancing import mean_balance_loss
from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.accumulation import accumulate_gradients
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import memory_bytes
from malora_jax.training.state import create_state
from malora_jax.training.step import abstract_batch, losses, make_train_step
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model
from tests.helpers.steps import (
    ADAMW,
    assert_close,
    make_hyperparameters,
    new_state,
    record_gradients,
)

NUM_TASKS = 2
# Micro-batches of two rows with very different numbers of tokens; the last one has none.
BATCH = packed_batch([(10, 9), (7, 8, 9), (4,), (), (24,), (3, 3), (), ()], 24)
PARTS = 4


def parts(batch):
    return [{key: rows[i : i + 2] for key, rows in batch.items()} for i in range(0, 8, 2)]


def step_of(model, optimizer, accumulate: int):
    return make_train_step(model, optimizer, lambda _: 0.0, NUM_TASKS, accumulate)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


def small_model(name: str, **overrides):
    return tiny_model(small_method(name, targets=('q', 'down'), **overrides))


def one_step(model, variables, optimizer, accumulate: int, number: int = 0):
    """Return the state, the gradients and the metrics after one step."""
    optimizer = record_gradients(optimizer)
    train_step = make_train_step(model, optimizer, lambda _: 0.0, NUM_TASKS, accumulate)
    state = new_state(variables, optimizer, number)
    state, metrics = train_step(
        state, variables['params'], BATCH, make_hyperparameters(model.adapter)
    )
    return state, state.opt_state[0], metrics


@pytest.mark.parametrize(
    'name, changes', [('dora', {}), ('malora', {}), ('d2mora', {'similarity_weight': 0.5})]
)
def test_parts_are_one_large_batch(name, changes):
    """Loss, gradient and update agree if there is no load-balancing loss.

    Adam divides a gradient by its size. Updates are therefore compared to 1e-4 of the learning rate
    and one rounding of the value, and only where the gradient is larger than rounding errors.
    """
    model = small_model(name, dropout=0.0, balance_weight=0.0, **changes)
    variables, optimizer = random_variables(model), make_optimizer(ADAMW, 10)
    (whole, gradients, expected), (in_parts, found, metrics) = (
        one_step(model, variables, optimizer, accumulate) for accumulate in (1, PARTS)
    )
    assert metrics.keys() == expected.keys()
    for key in metrics.keys() - {'balance_loss'}:
        np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-5, err_msg=key)
    assert metrics['task_tokens'].sum() == BATCH['loss_mask'].sum()
    assert metrics['tokens'] == (BATCH['segment_ids'] > 0).sum()
    assert_close(found, gradients, 2e-5)
    assert int(in_parts.step) == 1
    leaves = (trees.named_leaves(state.adapter) for state in (whole, in_parts))
    for (path, a), (_, b), gradient in zip(*leaves, jax.tree.leaves(gradients), strict=True):
        clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        assert clear.mean() > 0.5, path
        np.testing.assert_allclose(a[clear], b[clear], rtol=2e-7, atol=1e-7, err_msg=path)


def gradient_written_out(model, variables, keys):
    """Return the gradient of the objective in the docstring of `make_train_step`."""
    loss_tokens, tokens = BATCH['loss_mask'].sum(), (BATCH['segment_ids'] > 0).sum()

    @jax.jit
    @jax.grad
    def gradient_of(adapter, part, key, share):
        sums = losses(model, variables | {'adapter': adapter}, part, NUM_TASKS, key)
        balance = share * mean_balance_loss(sums.routing, model.adapter)
        return sums.nll.sum() / loss_tokens + model.adapter.router.balance_weight * balance

    each = []
    for number, key in enumerate(keys):
        part = {name: rows[2 * number : 2 * number + 2] for name, rows in BATCH.items()}
        share = (part['segment_ids'] > 0).sum() / tokens
        each.append(gradient_of(variables['adapter'], part, key, share))
    return jax.tree.map(lambda *leaves: sum(leaves), *each)


def test_balance_loss_and_dropout_are_those_of_each_part():
    model = small_model('malora', dropout=0.3, balance_weight=0.5)
    variables = random_variables(model)
    _, found, metrics = one_step(model, variables, optax.set_to_zero(), PARTS, number=3)
    assert metrics['balance_loss'] > 1
    step_key = jax.random.fold_in(jax.random.key(0), 3)
    keys = jax.random.split(step_key, PARTS)
    assert_close(found, gradient_written_out(model, variables, keys), 2e-5)
    # With the same dropout masks in each micro-batch, the gradient is far off.
    with pytest.raises(AssertionError):
        assert_close(found, gradient_written_out(model, variables, [step_key] * PARTS), 1e-2)


def test_sums_over_parts_in_order():
    def objective(w, rows, key):
        value = (w * rows['x']).sum() * rows['y'].sum()
        return value, (value, jax.random.uniform(key))

    keys = jax.random.split(jax.random.key(1), 3)
    rows = {'x': np.arange(6.0).reshape(6, 1), 'y': np.arange(1.0, 7.0)}
    gradients, (value, draws) = accumulate_gradients(objective, jnp.float32(2.0), rows, keys)
    expected = 1 * 3 + 5 * 7 + 9 * 11
    assert gradients == expected
    assert value == 2 * expected
    np.testing.assert_allclose(draws, sum(jax.random.uniform(key) for key in keys), rtol=1e-6)


# Memory, as planned by the compiler.


SMALL = method('lora', rank=2, targets=('q',))


def temporary_bytes(
    rows: int, accumulate: int, remat: str, adapter: AdapterConfig = SMALL, length: int = 128
) -> int:
    config = preset('tiny', num_layers=6)
    model, optimizer = Decoder(config, adapter, remat), make_optimizer(ADAMW, 10)
    params = nn.unbox(abstract_variables(model))['params']
    state = jax.eval_shape(lambda params: create_state(model, optimizer, 0, params), params)
    train_step = make_train_step(
        model, optimizer, learning_rate_schedule(ADAMW, 10), NUM_TASKS, accumulate
    )
    lowered = train_step.lower(
        state, params, abstract_batch(rows, length), make_hyperparameters(adapter)
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_parts_need_the_memory_of_one_part_and_remat_less():
    one, in_parts, whole = (temporary_bytes(*sizes, 'none') for sizes in ((1, 1), (8, 8), (8, 1)))
    assert in_parts < 1.2 * one
    assert whole > 5 * one
    assert temporary_bytes(1, 1, 'full') < 0.5 * one


def test_the_sum_of_gradients_takes_the_place_of_the_updates():
    """The adapter is large next to everything else, which the test above does not cover."""
    adapter = method('lora', rank=60)
    one, two, four = (temporary_bytes(n, n, 'full', adapter, length=16) for n in (1, 2, 4))
    gradients = memory_bytes(Decoder(preset('tiny', num_layers=6), adapter))['gradients']
    assert two < one + gradients / 2
    assert four == pytest.approx(two, rel=0.01)
