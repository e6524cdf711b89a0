"""Every method in a two-layer model: losses, gradients, and the changes of one step."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malora_jax.adapters import trees
from malora_jax.adapters.settings import settings_of
from malora_jax.models import Decoder
from malora_jax.models.config import Llama3Scaling
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.state import TrainState
from malora_jax.training.step import make_train_step
from tests.helpers.models import (
    METHOD_NAMES,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
)
from tests.helpers.reference_decoder import (
    ReferenceDecoder,
    ReferenceLosses,
    choice_scores,
    routing_margin,
    to_float64,
)
from tests.helpers.reference_rloo import Orders, sampled_losses, sampled_orders
from tests.helpers.steps import make_hyperparameters, new_state, record_gradients

NUM_TASKS = 2
SIZE, STEP = 0.2, 1e-5  # Size of the values, and step of the differences relative to it.
# Three examples and, in the second row, padding.
BATCH = packed_batch([(4, 4), (6,)], 8)
ADAMW = OptimizerConfig(
    learning_rate=1e-3, warmup_ratio=0.0, schedule='cosine', weight_decay=0.01, clip_norm=1.0
)
# Trained and frozen leaves of each adapted linear.
LEAVES = {
    'lora': ({'down', 'up'}, set()),
    'dora': ({'down', 'up', 'magnitude'}, set()),
    'asylora': ({'up'}, {'down'}),
    'molora': ({'router', 'down', 'up'}, set()),
    'moasylora': ({'router', 'up'}, {'down'}),
    'malora': ({'router', 'shared_down', 'core', 'up'}, set()),
    'malora_small': ({'router', 'shared_down', 'core', 'up'}, set()),
    'molora_r12': ({'router', 'down', 'up'}, set()),
    'molora_same_down': ({'router', 'down', 'up'}, set()),
    'malora_fixed_shared': ({'router', 'core', 'up'}, {'shared_down'}),
    'malora_symmetric': ({'router', 'shared_down', 'core', 'up'}, set()),
    'malora_unshared': ({'router', 'down', 'core', 'up'}, set()),
    'malora_fixed_core': ({'router', 'shared_down', 'up'}, {'core'}),
    'malora_shared_up': ({'router', 'down', 'core', 'shared_up'}, set()),
    'hydralora': ({'router', 'shared_down', 'up'}, set()),
    'hydralora_top2': ({'router', 'shared_down', 'up'}, set()),
    'alora': ({'router', 'down', 'shared_up'}, set()),
    'adamole': ({'router', 'threshold', 'threshold_bias', 'down', 'up'}, set()),
    'smora': ({'router', 'shared_down', 'shared_up'}, {'balance_bias'}),
    'flylora': ({'shared_up'}, {'shared_down', 'balance_bias'}),
    'align_lora': ({'down', 'up'}, set()),
    'remix': ({'router', 'down', 'up'}, set()),
    'mtl_lora': ({'shared_down', 'core', 'up', 'task_weights'}, set()),
    'moslora': ({'shared_down', 'core', 'shared_up'}, set()),
    'comol': ({'router', 'shared_down', 'core', 'shared_up'}, set()),
    'd2mora': ({'router', 'down', 'up_router', 'up'}, set()),
    'goat': ({'router', 'down', 'up'}, {'residual_down', 'residual_up'}),
    'mlora_heads': ({'shared_down', 'up'}, {'residual_down', 'residual_up'}),
    'molora_dispatch': ({'router', 'down', 'up'}, set()),
    'malora_dispatch': ({'router', 'shared_down', 'core', 'up'}, set()),
    'routers alone': ({'router'}, {'down', 'up'}),
}
# Method and changed settings of further cases.
VARIANTS = {
    'experts per layer': ('molora', {'experts_per_layer': (2, 4)}),
    'thresholds per layer': ('adamole', {'experts_per_layer': (2, 4)}),
    'balance bias': ('malora', {'bias_rate': 1e-2}),
    'bias in gates': ('smora', {'bias_in_gates': True}),
    'bias in softmax gates': ('malora', {'bias_rate': 1e-2, 'bias_in_gates': True}),
    'bias toward a share': ('flylora', {'bias_target': 'share'}),
    'bias toward a share per layer': (
        'malora',
        {'bias_rate': 1e-2, 'bias_target': 'share', 'experts_per_layer': (2, 4), 'top_k': 1},
    ),
    'distances': ('adamole', {'balance_scores': 'distance'}),
    'distances per layer': (
        'adamole',
        {'balance_scores': 'distance', 'experts_per_layer': (2, 4)},
    ),
    'no width scale': ('goat', {'width_scale': False}),
    'three samples': ('remix', {'samples': 3}),
    'similarity': ('d2mora', {'similarity_weight': 0.5}),
    'similarity of cores': ('malora', {'similarity_weight': 0.5}),
    'similarity of experts per layer': (
        'molora',
        {'similarity_weight': 0.5, 'experts_per_layer': (2, 4)},
    ),
    'absolute logits': ('molora', {'scores': 'absolute'}),
    'routers alone': (
        'molora',
        {'frozen': ('down', 'up'), 'scores': 'absolute', 'renormalize': True},
    ),
}
LINEARS = ('attention/q', 'attention/k', 'attention/v', 'mlp/gate', 'mlp/up', 'mlp/down')


pytestmark = pytest.mark.usefixtures('compile_quickly')


class Trained(NamedTuple):
    """Inputs and results of one training step.

    Attributes:
        model: Decoder with the adapter.
        before: Variables before the step.
        params: Parameters of the base model that the step was given.
        metrics: Metrics of the step.
        gradients: Gradients of the adapter.
        after: State after the step.
        orders: Sampled experts; None if the routers choose the top K.
    """

    model: Decoder
    before: dict[str, Any]
    params: Any
    metrics: dict[str, Any]
    gradients: Any
    after: TrainState
    orders: list[Orders] | None = None


def decided_variables(model: Decoder) -> dict[str, Any]:
    """Return random values for which rounding cannot change a routing decision."""
    for seed in range(200):
        variables = jax.tree.map(np.array, random_variables(model, seed))
        outputs = ReferenceDecoder(model.config, variables, model.adapter).loss(BATCH).outputs
        chances = choice_scores(outputs, BATCH['segment_ids'])
        if routing_margin(chances, model.adapter.router) > 3e-4:
            return variables
    raise AssertionError('every seed has a router in two minds')


@functools.cache
def trained(name: str) -> Trained:
    """Run a step of a model with the features of all families, from random nonzero values."""
    method, changes = VARIANTS.get(name, (name, {}))
    model = tiny_model(
        small_method(method, dropout=0.0, balance_weight=0.5, **changes),
        qkv_bias=True,
        qk_norm=True,
        rope_scaling=Llama3Scaling(4.0, 1.0, 4.0, 16),
        tied=False,
    )
    before = decided_variables(model)
    params = jax.tree.map(jnp.array, before['params'])
    optimizer = record_gradients(make_optimizer(ADAMW, 10))
    schedule = learning_rate_schedule(ADAMW, 10)
    train_step = make_train_step(model, optimizer, schedule, NUM_TASKS)
    state = new_state(before, optimizer)
    after, metrics = train_step(state, params, BATCH, make_hyperparameters(model.adapter, ADAMW))
    orders = None
    if model.adapter.router.samples:
        key = jax.random.fold_in(jax.random.key(0), 0)  # Seed 0, step 0.
        orders = sampled_orders(model, before, BATCH, key)
    return Trained(model, before, params, metrics, to_float64(after.opt_state[0]), after, orders)


# Values and gradients.


def reference_losses(
    step: Trained, variables: Any, lengths: dict[str, np.ndarray] | None = None
) -> ReferenceLosses:
    if step.orders is not None:
        _, fixed = sampled_losses(step.model, step.before, BATCH, step.orders)
        return sampled_losses(step.model, variables, BATCH, step.orders, fixed)[0]
    return ReferenceDecoder(step.model.config, variables, step.model.adapter, lengths).loss(BATCH)


@pytest.mark.parametrize('name', [*METHOD_NAMES, *VARIANTS])
def test_losses_against_the_reference(name):
    step = trained(name)
    losses = reference_losses(step, step.before)
    assert losses.nll > 1
    np.testing.assert_allclose(step.metrics['loss'], losses.nll, rtol=3e-6)
    np.testing.assert_allclose(step.metrics['balance_loss'], losses.balance, rtol=3e-6)
    if step.model.adapter.alignment_weight:
        assert losses.alignment > 0.5
        np.testing.assert_allclose(step.metrics['alignment_loss'], losses.alignment, rtol=3e-6)
    if step.model.adapter.similarity_weight:
        assert losses.similarity > 0.5
        np.testing.assert_allclose(step.metrics['similarity_loss'], losses.similarity, rtol=3e-6)
    assert (losses.balance > 0.5) == step.model.adapter.has_router


def moved(tree: Any, path: str, change: np.ndarray) -> Any:
    """Return the tree with a change added to one leaf."""
    key, _, rest = path.partition('/')
    return tree | {key: moved(tree[key], rest, change) if rest else tree[key] + change}


@pytest.mark.parametrize('name', [*METHOD_NAMES, *VARIANTS])
def test_gradients_are_central_differences_of_the_reference(name):
    """Compare along a random direction in each leaf, to 5e-5; DoRA's norms are held fixed."""
    step = trained(name)
    router = step.model.adapter.router
    variables = {key: to_float64(tree) for key, tree in step.before.items()}
    here = reference_losses(step, variables).outputs
    segments = BATCH['segment_ids']
    chances = choice_scores(here, segments)
    rng = np.random.default_rng(1)
    for path, gradient in trees.named_leaves(step.gradients):
        # The loss changes little with the bias of a threshold, a single number.
        width = 10 * SIZE if path.endswith('threshold_bias') else SIZE
        direction = width * rng.standard_normal(gradient.shape)
        ends = [
            reference_losses(step, moved(variables, f'adapter/{path}', change), here.norms)
            for change in (STEP * direction, -STEP * direction)
        ]
        for end in ends if step.orders is None else ():  # Sampled experts are given.
            change = np.abs(choice_scores(end.outputs, segments) - chances).max(initial=0)
            assert 2 * change < routing_margin(chances, router), (
                f'{path}: the step may change a choice'
            )
        expected = (ends[0].total - ends[1].total) / (2 * STEP)
        # The typical size of a derivative in a random direction.
        size = width * np.sqrt((gradient**2).sum())
        assert size > 0.01, path
        found = (gradient * direction).sum()
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * size, err_msg=path)


def test_lengths_of_dora_carry_no_gradient():
    """If the norms followed the weights, the differences would not match: holding them matters."""
    step = trained('dora')
    variables = {key: to_float64(tree) for key, tree in step.before.items()}
    here = reference_losses(step, variables).outputs
    ((up, gradient),) = [
        leaf for leaf in trees.named_leaves(step.gradients) if leaf[0] == 'layers/mlp/up/up'
    ]

    def difference(lengths: dict[str, np.ndarray] | None) -> float:
        ends = [
            reference_losses(step, moved(variables, f'adapter/{up}', change), lengths).total
            for change in (STEP * gradient, -STEP * gradient)
        ]
        return (ends[0] - ends[1]) / (2 * STEP)

    np.testing.assert_allclose((gradient**2).sum(), difference(here.norms), rtol=5e-5)
    assert difference(None) < 0.95 * difference(here.norms)


# Trained leaves.


def leaves_of(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in trees.named_leaves(tree)}


@pytest.mark.parametrize('name', [*METHOD_NAMES, 'routers alone'])
def test_a_step_changes_the_trained_leaves_and_nothing_else(name):
    step, (trained_names, frozen_names) = trained(name), LEAVES[name]

    def expected(names: set[str]) -> set[str]:
        return {f'layers/{linear}/{leaf}' for linear in LINEARS for leaf in names}

    adapter, gradients = leaves_of(step.after.adapter), leaves_of(step.gradients)
    frozen = leaves_of(step.after.adapter_frozen)
    assert set(adapter) == set(gradients) == expected(trained_names)
    assert set(frozen) == expected(frozen_names)
    for path, old in leaves_of(step.before['adapter']).items():
        for layer in range(step.model.config.num_layers):
            assert gradients[path][layer].any(), f'{path} of layer {layer}'
            changed = adapter[path][layer] != old[layer]
            assert changed.mean() > 0.9, f'{path} of layer {layer}'
    for path, old in leaves_of(step.before.get('adapter_frozen', {})).items():
        if not path.endswith('balance_bias'):
            np.testing.assert_array_equal(frozen[path], old, strict=True)
    for path, old in leaves_of(step.before['params']).items():
        np.testing.assert_array_equal(leaves_of(step.params)[path], old, strict=True)


@pytest.mark.parametrize(
    'name',
    [
        *('smora', 'flylora', 'balance bias', 'bias in gates'),
        *('bias toward a share', 'bias toward a share per layer'),
    ],
)
def test_a_step_moves_the_balance_biases_by_their_rate(name):
    """The reference counts the tokens of each expert; a bias rises if they are few."""
    step = trained(name)
    adapter, real = step.model.adapter, BATCH['segment_ids'].reshape(-1) > 0
    outputs = reference_losses(step, step.before).outputs
    before, after = (
        leaves_of(tree) for tree in (step.before['adapter_frozen'], step.after.adapter_frozen)
    )
    for linear, layer in itertools.product(LINEARS, range(step.model.config.num_layers)):
        routings = outputs.routings[f'layers/{layer}/{linear}']
        count_E = sum(each.chosen.astype(int) for each in itertools.compress(routings, real))
        n = adapter.layer_experts(step.model.config.num_layers)[layer]
        # No token is routed to an expert that the layer lacks.
        count_E = np.pad(count_E, (0, adapter.num_experts - n))
        total = count_E.sum()
        if settings_of(adapter).bias_target == 'share':
            total = adapter.router.top_k
        change_E = adapter.router.bias_rate * np.sign(total / n - count_E)
        path = f'layers/{linear}/balance_bias'
        assert len(np.unique(count_E)) > 1
        np.testing.assert_allclose(after[path][layer] - before[path][layer], change_E, atol=1e-7)


@pytest.mark.parametrize('name', [*METHOD_NAMES, 'routers alone'])
def test_moments_are_kept_of_the_trained_parameters_alone(name):
    step = trained(name)
    counts = count_model_parameters(step.model)
    assert trees.count(step.after.adapter) == counts['trainable']
    assert trees.count(step.after.adapter_frozen) == counts['frozen_in_adapter']
    shapes = {path: leaf.shape for path, leaf in leaves_of(step.after.adapter).items()}
    for moment in ('mu', 'nu'):
        moments = leaves_of(optax.tree.get(step.after.opt_state, moment))
        assert {path: leaf.shape for path, leaf in moments.items()} == shapes
        assert all(leaf.any() for leaf in moments.values())
        assert trees.count(moments) == counts['trainable']
