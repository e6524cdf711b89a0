"""Adapters on a small model of Flax's own layers compute what `LowRankExperts` computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from malora_jax import errors
from malora_jax.adapters import AdapterConfig, LowRankExperts, load_balancing
from malora_jax.adapters.trees import count
from malora_jax.nnx import (
    FrozenAdapter,
    adapt,
    balance_loss,
    rematerialize,
    routing_statistics,
    training_loss,
)
from malora_jax.nnx.layers import adapter_layers
from tests.helpers.models import STRUCTURES, small_method

WIDTH, HIDDEN, HEADS, HEAD_WIDTH = 16, 24, 4, 5
# Inputs and outputs of each layer of `Block`.
SIZES = {
    'query': (WIDTH, HEADS * HEAD_WIDTH),
    'kv_einsum': (WIDTH, 2 * HEADS * HEAD_WIDTH),
    'out': (HEADS * HEAD_WIDTH, WIDTH),
    'up_proj': (WIDTH, HIDDEN),
}
TARGETS = ('q', 'k', 'v', 'o', 'up')
REFUSED = {
    'dora': 'starts from the frozen kernel',
    'goat': 'starts from the frozen kernel',
    'mtl_lora': 'has parameters for each task',
    'remix': 'samples selections of experts',
    'align_lora': 'compares tasks',
}
MALORA = small_method('malora', targets=TARGETS)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


class Block(nnx.Module):
    """Layers of each kind: a linear layer of several axes, two einsums, and a plain one."""

    def __init__(self, rngs: nnx.Rngs):
        heads = (HEADS, HEAD_WIDTH)
        self.query = nnx.LinearGeneral(WIDTH, heads, rngs=rngs)
        self.kv_einsum = nnx.Einsum('BSD,CKDH->CBSKH', (2, HEADS, WIDTH, HEAD_WIDTH), rngs=rngs)
        self.out = nnx.Einsum('BTNH,NHD->BTD', (*heads, WIDTH), rngs=rngs)
        self.up_proj = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        key, value = self.kv_einsum(x)
        x += self.out(self.query(x) * jax.nn.sigmoid(key) + value)
        return self.up_proj(x)


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return sum(layer(x) for layer in self.layers)


def adapted(config: AdapterConfig, **options) -> Model:
    """Return a model whose adapter has random nonzero values in all leaves that are trained."""
    model = Model()
    adapt(model, config, rngs=nnx.Rngs(1), **options)
    randomize(model)
    return model


def randomize(model: nnx.Module) -> None:
    rng = np.random.default_rng(2)
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(
        model,
        jax.tree.map(
            lambda leaf: 0.3 * jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), state
        ),
    )


def leaves_of(layer) -> dict[str, dict[str, jax.Array]]:
    """Return the Flax collections of an adapter."""
    variables: dict[str, dict[str, jax.Array]] = {}
    for name in layer.config.leaf_names:
        leaf = getattr(layer, name)
        collection = 'adapter' if isinstance(leaf, nnx.LoRAParam) else 'adapter_frozen'
        assert collection == layer.config.collection(name)
        variables.setdefault(collection, {})[name] = leaf[...]
    return variables


def random_input(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape, np.float32))


def squares(model: nnx.Module, x: jax.Array) -> jax.Array:
    return (model(x) ** 2).mean()


@nnx.jit
def run(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.jit
def loss_and_gradient(model: nnx.Module, x: jax.Array) -> tuple[jax.Array, nnx.State]:
    trained = nnx.DiffState(0, nnx.LoRAParam)
    return nnx.value_and_grad(training_loss(squares), argnums=trained)(model, x)


@nnx.jit
def added_and_expected(model: Model, base: Model) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return what the adapter of each layer adds, and the same by `LowRankExperts`."""
    results = {}
    for name, (width, outputs) in SIZES.items():
        layer = getattr(model.layers[1], name)
        x = random_input(2, 3, *((HEADS, HEAD_WIDTH) if name == 'out' else (WIDTH,)))
        added = layer(x) - getattr(base.layers[1], name)(x)
        experts = LowRankExperts(layer.adapter.config, outputs)
        y = experts.apply(leaves_of(layer.adapter), x.reshape(6, width))
        if name == 'kv_einsum':
            y = jnp.moveaxis(y.reshape(2, 3, 2, HEADS, HEAD_WIDTH), 2, 0)
        results[name] = added, y.reshape(added.shape)
    return results


@pytest.mark.parametrize('name', [name for name in STRUCTURES if name not in REFUSED])
def test_each_layer_adds_the_update_of_low_rank_experts(name):
    model = adapted(small_method(name, targets=TARGETS))
    for added, expected in added_and_expected(model, Model()).values():
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(added, expected, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'formula'),
    [
        ('lora', lambda D, F, E, R, S: R * (D + F)),
        ('malora', lambda D, F, E, R, S: D * E + D * S + E * S * R + E * R * F),
        ('moasylora', lambda D, F, E, R, S: D * E + E * R * F),
    ],
)
def test_the_trained_leaves_are_those_of_the_formula(name, formula):
    config = small_method(name, targets=TARGETS)
    model = nnx.eval_shape(lambda: adapted(config))
    sizes = config.num_experts, config.structure.rank, config.structure.subspace_rank
    if name == 'lora':
        sizes = 1, config.structure.rank, 0
    expected = 2 * sum(formula(*size, *sizes) for size in SIZES.values())
    assert count(nnx.state(model, nnx.LoRAParam)) == expected
    assert bool(jax.tree.leaves(nnx.state(model, FrozenAdapter))) == (name == 'moasylora')


def test_the_base_model_keeps_paths_and_values():
    before = dict(nnx.to_flat_state(nnx.state(Model(), nnx.Param)))
    after = dict(nnx.to_flat_state(nnx.state(adapted(MALORA), nnx.Param)))
    kept = {path: leaf for path, leaf in after.items() if 'adapter' not in path}
    assert {*kept} == {*before}
    assert all(np.array_equal(kept[path][...], before[path][...]) for path in before)


@pytest.mark.parametrize(
    ('name', 'changes'), [('malora', {}), ('adamole', {'balance_scores': 'distance'})]
)
def test_statistics_and_balance_loss_are_those_of_the_routers(name, changes):
    config = small_method(name, targets=('up',), **changes)
    model, x = adapted(config).layers[0], random_input(2, 3, WIDTH)
    run(model.up_proj, x)
    experts, ones = LowRankExperts(config, HIDDEN), jnp.ones((6, 1))
    variables = leaves_of(model.up_proj.adapter)
    _, recorded = experts.apply(variables, x, groups=ones, mutable=['routing'])
    expected = recorded['routing']['sums']
    (found,) = routing_statistics(model).values()
    assert type(found) is type(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-6)
    loss = load_balancing.balance_loss(expected)
    np.testing.assert_allclose(balance_loss(model), loss, rtol=1e-5)


def test_the_training_loss_adds_the_balance_loss_and_trains_the_router():
    config = small_method('malora', targets=('up',), dropout=0.0, balance_weight=0.5)
    model, x = adapted(config), random_input(2, 3, WIDTH)
    plain = nnx.jit(squares)(model, x)
    loss, gradient = loss_and_gradient(model, x)
    np.testing.assert_allclose(loss, plain + 0.5 * balance_loss(model), rtol=1e-5)
    names = {path[-1] for path in dict(nnx.to_flat_state(gradient))}
    assert names == {'router', 'shared_down', 'core', 'up'}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    'name, changes',
    [
        ('lora', {'dropout': 0.5}),
        ('molora', {'dropout': 0.5, 'dropout_masks': 'expert'}),
        ('comol', {'dropout': 0.0, 'core_dropout': 0.5}),
        ('mlora_heads', {'dropout': 0.0, 'head_dropout': 0.5}),
    ],
)
def test_dropout_is_on_in_training_only(name, changes):
    model, x = (
        adapted(small_method(name, targets=('up',), **changes)),
        random_input(2, 3, WIDTH),
    )
    plain = run(model, x)
    losses = {float(loss_and_gradient(model, x)[0]) for _ in range(2)}
    assert len(losses | {float((plain**2).mean())}) == 3
    assert np.array_equal(run(model, x), plain)
    model.train()
    assert not np.array_equal(run(model, x), run(model, x))
    model.eval()
    assert np.array_equal(run(model, x), plain)


def test_balancing_biases_move_by_their_rate():
    model = adapted(small_method('smora', targets=('up',), bias_rate=0.25))
    loss_and_gradient(model, random_input(2, 3, WIDTH))
    for _, layer in adapter_layers(model):
        load_E = layer.sums.load[0, 0]
        np.testing.assert_array_equal(
            layer.balance_bias[...], 0.25 * np.sign(load_E.mean() - load_E)
        )


def test_recomputed_layers_keep_state_and_gradients():
    models = [adapted(small_method('malora', targets=('up',))) for _ in range(2)]
    rematerialize(models[1], r'layers/\d+')
    (loss, gradient), (again, recomputed) = (
        loss_and_gradient(model, random_input(2, 3, WIDTH)) for model in models
    )
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    jax.tree.map(lambda *each: np.testing.assert_allclose(*each, atol=1e-6), gradient, recomputed)
    assert balance_loss(models[0]) == pytest.approx(float(balance_loss(models[1])))


def test_a_model_that_drops_the_state_of_its_layers_is_refused():
    def loss(model: Model, x: jax.Array) -> jax.Array:
        graph, state = nnx.split(model)
        return jax.checkpoint(lambda state: squares(nnx.merge(graph, state), x))(state)

    model = adapted(small_method('malora', targets=('up',)))
    with pytest.raises(errors.UserError, match='layers/0/up_proj has kept no routing statistics'):
        training_loss(loss)(model, random_input(1, 1, WIDTH))


def test_a_model_without_an_adapter_is_refused():
    with pytest.raises(errors.UserError, match='has no adapter'):
        training_loss(squares)(Model(), random_input(1, 1, WIDTH))


class Metric(struct.PyTreeNode):
    unreduced_sum: jax.Array
    denominator: jax.Array


class LossOutput(struct.PyTreeNode):
    """What loss functions of tunix return from version 0.1.8 on."""

    primary_loss: Metric


def test_the_kinds_of_results_of_loss_functions():
    config = small_method('malora', targets=('up',), dropout=0.0, balance_weight=1.0)
    model, x = adapted(config), random_input(2, 3, WIDTH)
    result, other = training_loss(lambda model, x: (squares(model, x), 'other'))(model, x)
    metric = Metric(jnp.float32(8), jnp.float32(4))

    def loss(model, x):
        model(x)
        return LossOutput(metric)

    output = training_loss(loss)(model, x)
    assert other == 'other'
    np.testing.assert_allclose(result - squares(model, x), balance_loss(model), rtol=1e-4)
    average = output.primary_loss.unreduced_sum / output.primary_loss.denominator
    np.testing.assert_allclose(average, 2 + balance_loss(model), rtol=1e-6)


@pytest.mark.parametrize('name', REFUSED)
def test_methods_that_need_something_else_are_refused(name):
    with pytest.raises(errors.UserError, match=REFUSED[name]):
        adapt(Model(), small_method(name), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ('options', 'targets', 'message'),
    [
        ({'module_path': 'decoder/.*'}, TARGETS, 'matches none of the 8 layers with a kernel'),
        ({}, ('q', 'gate'), 'has no linear layer for gate of adapter.targets'),
        ({}, ('q', 'k'), 'kv_einsum computes k and v together'),
    ],
)
def test_layers_that_are_not_found_are_errors(options, targets, message):
    with pytest.raises(errors.UserError, match=message):
        adapt(Model(), small_method('malora', targets=targets), rngs=nnx.Rngs(0), **options)


def test_a_second_adapter_is_refused():
    model = adapted(MALORA)
    with pytest.raises(errors.UserError, match='already has an attribute adapter'):
        adapt(model, MALORA, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    'layer',
    [
        lambda rngs: nnx.Einsum('ECD,EDF->ECF', (3, 4, 5), rngs=rngs),
        lambda rngs: nnx.Einsum('TD,DF->TD', (4, 5), rngs=rngs),
        lambda rngs: nnx.Conv(4, 5, 3, rngs=rngs),
        lambda rngs: nnx.LinearGeneral(4, 5, axis=0, rngs=rngs),
    ],
)
def test_layers_that_are_not_linear_in_their_last_axes_are_refused(layer):
    model = nnx.Sequential(layer(nnx.Rngs(0)))
    with pytest.raises(errors.UserError, match='needs one weight for all tokens'):
        adapt(model, MALORA, rngs=nnx.Rngs(0), module_path='layers/0')
