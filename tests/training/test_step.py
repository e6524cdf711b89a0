import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from malora_jax.adapters import method, trees
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.state import create_state
from malora_jax.training.step import abstract_batch, make_train_step
from tests.helpers.compiling import few_optimizations
from tests.helpers.models import (
    STRUCTURES,
    logits_of,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
    unpack_batch,
)
from tests.helpers.steps import ADAMW, RECORDER, assert_close, make_hyperparameters, new_state

NUM_TASKS = 2
# Five examples in two rows, and three rows of padding; every test uses this shape.
BATCH = packed_batch([(10, 9), (7, 8, 9), (), (), ()], 24)


pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture
def compile_well():
    with few_optimizations(False):
        yield


@functools.cache
def recording_step(model: Decoder):
    return make_train_step(model, RECORDER, lambda _: 0.0, NUM_TASKS)


def metrics_and_gradients(model: Decoder, variables, batch) -> tuple[dict[str, Any], Any]:
    """Return the metrics and gradients of the compiled training step, before the optimizer."""
    state = new_state(variables, RECORDER)
    state, metrics = recording_step(model)(
        state, variables['params'], batch, make_hyperparameters(model.adapter)
    )
    return jax.tree.map(np.asarray, metrics), jax.tree.map(np.asarray, state.opt_state[0])


def without_dropout(name: str, **overrides) -> Decoder:
    return tiny_model(small_method(name, dropout=0.0, balance_weight=0.5, **overrides))


@pytest.mark.parametrize('name', STRUCTURES)
def test_packed_equals_unpacked(name):
    model = without_dropout(name)
    variables = random_variables(model)
    metrics, gradients = metrics_and_gradients(model, variables, BATCH)
    metrics_alone, gradients_alone = metrics_and_gradients(model, variables, unpack_batch(BATCH))
    assert metrics['loss'] > 1
    for key in ('loss', 'task_nll', 'task_tokens', 'tokens', 'balance_loss', 'gradient_norm'):
        np.testing.assert_allclose(metrics[key], metrics_alone[key], rtol=1e-5, err_msg=key)
    # Sums run over tokens in another order.
    assert_close(gradients, gradients_alone, 5e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_the_gradient_norm_of_each_parameter(name):
    model = without_dropout(name)
    metrics, gradients = metrics_and_gradients(model, random_variables(model), BATCH)
    squares = {}
    for path, leaf in trees.named_leaves(gradients):
        leaf_name = path.split('/')[-1]
        squares[leaf_name] = squares.get(leaf_name, 0) + np.sum(np.float64(leaf) ** 2)
    found = {key.partition('/')[2]: metrics[key] for key in metrics if '_norm/' in key}
    assert found == pytest.approx({name: square**0.5 for name, square in squares.items()}, 1e-5)
    assert metrics['gradient_norm'] == pytest.approx(sum(squares.values()) ** 0.5, 1e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_padding_changes_nothing(name):
    model = without_dropout(name)
    variables = random_variables(model)
    metrics, gradients = metrics_and_gradients(model, variables, BATCH)
    padding = BATCH['segment_ids'] == 0
    garbage = BATCH | {
        key: np.where(padding, value, BATCH[key]).astype(BATCH[key].dtype)
        for key, value in dict(inputs=9, targets=17, task_ids=1, positions=3).items()
    }
    batches = [garbage]
    if name == 'malora':  # Without the rows of padding, which takes another compilation.
        batches.append({key: array[:2] for key, array in BATCH.items()})
    for batch in batches:
        metrics_padded, gradients_padded = metrics_and_gradients(model, variables, batch)
        for key, value in metrics.items():
            np.testing.assert_allclose(metrics_padded[key], value, rtol=1e-5, err_msg=key)
        assert_close(gradients_padded, gradients, 5e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_losses_of_each_task_by_hand(name):
    model = without_dropout(name)
    variables = random_variables(model)
    metrics, _ = metrics_and_gradients(model, variables, BATCH)
    arrays = (BATCH[key] for key in ('inputs', 'positions', 'segment_ids', 'task_ids'))
    logits = np.float64(logits_of(model, variables, *arrays))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, BATCH['targets'][..., None], axis=-1)[..., 0]
    nll *= BATCH['loss_mask']
    for task in range(NUM_TASKS):
        here = BATCH['task_ids'] == task
        np.testing.assert_allclose(metrics['task_nll'][task], nll[here].sum(), rtol=1e-5)
        assert metrics['task_tokens'][task] == BATCH['loss_mask'][here].sum() > 0
    np.testing.assert_allclose(metrics['loss'], nll.sum() / BATCH['loss_mask'].sum(), rtol=1e-5)
    assert metrics['tokens'] == (BATCH['segment_ids'] > 0).sum()
    assert (metrics['balance_loss'] > 0.9) == model.adapter.has_router


def test_a_batch_without_loss_gives_no_nan():
    model = without_dropout('malora')
    batch = BATCH | {'loss_mask': np.zeros_like(BATCH['loss_mask'])}
    metrics, gradients = metrics_and_gradients(model, random_variables(model), batch)
    assert metrics['loss'] == 0
    assert metrics['balance_loss'] > 1
    for path, leaf in trees.named_leaves(gradients):
        assert np.isfinite(leaf).all()
        # Only the load-balancing loss remains, which reaches up-projections only through inputs of
        # later layers.
        assert leaf[0].any() or path.endswith(('gate/up', 'up/up', 'down/up')), path


# The optimizer, and what it may change.


def bits(tree) -> dict[str, bytes]:
    return {name: np.asarray(leaf).tobytes() for name, leaf in trees.named_leaves(tree)}


@pytest.mark.parametrize(
    'name, frozen', [('lora', ()), ('malora', ()), ('malora', ('core', 'router'))]
)
def test_only_the_adapter_is_trained(name, frozen):
    model = tiny_model(small_method(name, frozen=frozen))
    variables = random_variables(model)
    optimizer = make_optimizer(ADAMW, 10)
    state = new_state(variables, optimizer)
    schedule = learning_rate_schedule(ADAMW, 10)
    train_step = make_train_step(model, optimizer, schedule, NUM_TASKS)
    before = bits({'adapter': state.adapter, 'frozen': state.adapter_frozen})
    for _ in range(3):
        state, _ = train_step(
            state, variables['params'], BATCH, make_hyperparameters(model.adapter)
        )
    assert int(state.step) == 3
    after = bits({'adapter': state.adapter, 'frozen': state.adapter_frozen})
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {path for path in before if path.startswith('adapter/')}
    assert len(changed) == len(jax.tree.leaves(variables['adapter']))
    # Two moments of every trained parameter, and the counters of Adam and of the schedule.
    counts = count_model_parameters(model)
    assert trees.count(state.adapter) == counts['trainable']
    assert trees.count(state.opt_state) == 2 * counts['trainable'] + 2
    assert trees.count(state.adapter_frozen) == counts['frozen_in_adapter']
    assert bool(counts['frozen_in_adapter']) == bool(frozen)


def num_bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    'adapter',
    [method('lora', rank=1), method('malora', num_experts=2, rank=1, shared_rank=2)],
    ids=['lora', 'malora'],
)
@pytest.mark.usefixtures('compile_well')
def test_one_copy_of_the_base_without_gradient_or_moments(adapter):
    """Memory of a compiled step, with a base model that is large compared with everything else."""
    config = ModelConfig(
        name='wide',
        vocab_size=512,
        width=256,
        hidden=1024,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        context=64,
    )
    model, optimizer = Decoder(config, adapter), make_optimizer(ADAMW, 10)
    params = nn.unbox(abstract_variables(model))['params']
    state = jax.eval_shape(lambda: create_state(model, optimizer, 0, params))
    train_step = make_train_step(model, optimizer, learning_rate_schedule(ADAMW, 10), NUM_TASKS)
    arguments = (state, params, abstract_batch(1, 8), make_hyperparameters(adapter))
    memory = train_step.lower(*arguments).compile().memory_analysis()
    base, trained, small = num_bytes(params), num_bytes(state.adapter), 10_000
    assert base > 50 * trained
    # Inputs: the base model once, the adapter and its two moments. Outputs: only the metrics are
    # new.
    assert 0 <= memory.argument_size_in_bytes - base - 3 * trained < small
    assert 0 <= memory.output_size_in_bytes - memory.alias_size_in_bytes < small
    # Temporary memory holds a few layers at once, but neither a copy of the base model nor its
    # gradient.
    assert memory.temp_size_in_bytes < 0.3 * base
    assert trees.count(state.opt_state) == 2 * trees.count(state.adapter) + 2
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    assert not [path for path, leaf in trees.named_leaves(state) if leaf.shape in shapes]


@pytest.mark.parametrize('name', ['molora', 'malora'])
def test_a_fresh_state(name):
    model = tiny_model(small_method(name), dtype='bfloat16')
    params = random_variables(model)['params']
    states = [create_state(model, make_optimizer(ADAMW, 10), seed, params) for seed in (0, 0, 1)]
    state = states[0]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.adapter)} == {'float32'}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.opt_state)} == {'float32', 'int32'}
    for path, leaf in trees.named_leaves(state.adapter):
        assert np.asarray(leaf).any() != path.endswith('/up'), path
        if not path.endswith('/up'):
            assert not np.array_equal(leaf[0], leaf[1]), 'layers start differently'
    assert bits(states[0]) == bits(states[1])
    assert bits(states[0]) != bits(states[2])


@pytest.mark.parametrize(
    'name, changes',
    [
        ('lora', {'dropout': 0.5}),
        ('mlora_heads', {'dropout': 0.0, 'head_dropout': 0.5}),
        ('alora', {'dropout': 0.5, 'dropout_masks': 'expert'}),
        ('comol', {'dropout': 0.0, 'core_dropout': 0.5}),
    ],
)
def test_dropout_depends_on_seed_and_step_alone(name, changes):
    model = tiny_model(small_method(name, **changes))
    variables = random_variables(model)
    step = make_train_step(model, RECORDER, lambda _: 0.0, NUM_TASKS)

    def loss(seed: int, number: int) -> float:
        state = new_state(variables, RECORDER, number)
        given = make_hyperparameters(model.adapter, seed=seed)
        return float(step(state, variables['params'], BATCH, given)[1]['loss'])

    first = loss(0, 0)
    assert loss(0, 0) == first
    assert loss(0, 1) != first
    assert loss(1, 0) != first
