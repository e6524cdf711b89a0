import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.trees import ADAPTER_COLLECTIONS, named_leaves
from malora_jax.models.context import Context
from malora_jax.models.decoder import MLP, Attention, Block, abstract_variables
from malora_jax.models.linear import AdaptedLinear, Dropout
from malora_jax.training.state import initial_variables
from malora_jax.training.step import losses
from tests.helpers.models import (
    STRUCTURES,
    hidden_states,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
    unpack_batch,
)

pytestmark = pytest.mark.usefixtures('compile_quickly')

# Two examples and padding in the first row, three examples and no padding in the second.
LENGTH = 24
BATCH = packed_batch([(10, 9), (7, 8, 9)], LENGTH)
MODELS = {name: tiny_model(small_method(name)) for name in STRUCTURES} | {'base': tiny_model()}


@functools.cache
def variables_of(name: str) -> dict[str, Any]:
    return random_variables(MODELS[name])


def run(name: str, batch=BATCH) -> np.ndarray:
    arrays = (batch[key] for key in ('inputs', 'positions', 'segment_ids'))
    return np.asarray(hidden_states(MODELS[name], variables_of(name), *arrays))


@pytest.mark.parametrize('name', MODELS)
@settings(deadline=None, max_examples=25)
@given(row=st.integers(0, 1), place=st.integers(0, LENGTH - 1), shift=st.integers(1, 299))
def test_a_token_changes_itself_and_later_ones_of_its_example_and_nothing_else(
    name, row, place, shift
):
    before = run(name)
    inputs = BATCH['inputs'].copy()
    inputs[row, place] = (inputs[row, place] + shift) % 300
    change = np.abs(run(name, BATCH | {'inputs': inputs}) - before).max(axis=-1)
    segments = BATCH['segment_ids']
    # Padding attends to padding, and its values do not matter.
    expected = np.zeros(change.shape, bool)
    expected[row, place:] = segments[row, place:] == segments[row, place]
    assert not change[~expected].any(), 'bit-equal where the token cannot be seen'
    assert change[row, place] > 1e-2
    assert (change[expected] > 1e-6).all()


@pytest.mark.parametrize('name', MODELS)
def test_content_and_positions_of_padding_change_nothing(name):
    padding, before = BATCH['segment_ids'] == 0, run(name)
    assert padding.any()
    inputs = np.where(padding, 77, BATCH['inputs'])
    positions = np.where(padding, 1234, BATCH['positions'])
    after = run(name, BATCH | {'inputs': inputs, 'positions': positions})
    np.testing.assert_array_equal(after[~padding], before[~padding])
    assert not np.array_equal(after[padding], before[padding])


@pytest.mark.parametrize('name', MODELS)
def test_packed_equals_unpacked(name):
    alone = unpack_batch(BATCH)
    packed_hidden, alone_hidden = run(name), run(name, alone)
    np.testing.assert_allclose(
        packed_hidden[BATCH['segment_ids'] > 0],
        alone_hidden[alone['segment_ids'] > 0],
        rtol=1e-5,
        atol=3e-5,  # Hidden states are about 1 in size, 4 at most.
    )


@pytest.mark.parametrize('name', ['malora', 'base'])
def test_positions_matter_only_relative_to_each_other(name):
    before, real = run(name), BATCH['segment_ids'] > 0
    shifted = run(name, BATCH | {'positions': BATCH['positions'] + 5})
    np.testing.assert_allclose(shifted[real], before[real], rtol=1e-4, atol=1e-4)
    stretched = run(name, BATCH | {'positions': 2 * BATCH['positions']})
    assert np.abs(stretched - before)[real].max() > 0.1


@pytest.mark.parametrize('name', STRUCTURES)
def test_without_the_last_factor_the_adapter_does_nothing(name):
    base, params, last = (
        run('base'),
        variables_of(name)['params'],
        MODELS[name].adapter.structure.factors[-1],
    )
    np.testing.assert_array_equal(
        np.asarray(variables_of('base')['params']['embedding']), np.asarray(params['embedding'])
    )
    assert np.abs(run(name) - base).max() > 0.1

    def silence(path, leaf):
        if path[-1].key == 'magnitude':
            kernel_LDF = params['layers'][path[1].key][path[2].key]['kernel']
            return jnp.linalg.norm(kernel_LDF, axis=1)
        return leaf * 0 if path[-1].key in (last, 'residual_up') else leaf

    silenced = {
        key: jax.tree_util.tree_map_with_path(silence, variables_of(name).get(key, {}))
        for key in ADAPTER_COLLECTIONS
    }
    arrays = (BATCH[key] for key in ('inputs', 'positions', 'segment_ids'))
    silent = hidden_states(MODELS[name], variables_of(name) | silenced, *arrays)
    # DoRA's column norms are rounded.
    atol = 3e-5 if name == 'dora' else 0
    np.testing.assert_allclose(np.asarray(silent), base, rtol=0, atol=atol)


@pytest.mark.parametrize('name', STRUCTURES)
@pytest.mark.parametrize('linear', LINEARS)
def test_only_targets_are_adapted(name, linear):
    model = tiny_model(small_method(name, targets=(linear,)))
    adapter = nn.unbox(abstract_variables(model))['adapter']
    assert {path.split('/')[-2] for path, _ in named_leaves(adapter)} == {linear}


@pytest.mark.parametrize('name', STRUCTURES)
@pytest.mark.parametrize('tied', [True, False])
def test_every_parameter_has_logical_axis_names(name, tied):
    frozen = small_method(name).structure.factors[:1]
    model = tiny_model(small_method(name, frozen=frozen, targets=LINEARS), tied=tied)
    variables = abstract_variables(model)
    assert set(variables) == {'params', 'adapter', 'adapter_frozen'}
    boxed = jax.tree_util.tree_leaves_with_path(
        variables, is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned)
    )
    assert len(boxed) == len(jax.tree.leaves(nn.unbox(variables)))
    for path, leaf in boxed:
        assert isinstance(leaf, nn.LogicallyPartitioned), path
        assert len(leaf.names) == leaf.value.ndim, path
        assert all(isinstance(axis, str) for axis in leaf.names), path
        scanned = any(key.key == 'layers' for key in path)
        assert (leaf.names[0] == 'layers') == scanned, path
        assert leaf.names.count('layers') == scanned, path
        assert not scanned or leaf.value.shape[0] == model.config.num_layers, path


# Dropout.


def dropout_model(rate: float):
    return tiny_model(small_method('malora', dropout=rate))


def hidden_in_training(rate: float, seed: int | None) -> np.ndarray:
    arrays = (BATCH[key] for key in ('inputs', 'positions', 'segment_ids'))
    rngs = {} if seed is None else {'dropout': jax.random.key(seed)}
    hidden = _hidden_in_training(rate, seed is not None, rngs, variables_of('malora'), *arrays)
    return np.asarray(hidden)[BATCH['segment_ids'] > 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden_in_training(rate: float, train: bool, rngs, variables, *arrays) -> jax.Array:
    return dropout_model(rate).apply(variables, *arrays, train=train, rngs=rngs)[0]


@pytest.mark.parametrize('remat', ['none', 'light'])
def test_a_layer_is_traced_once(remat):
    traced = []

    def record(method, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == '__call__':
            traced.append(context.module)
        return method(*args, **kwargs)

    model, variables = MODELS['malora'].clone(remat=remat), variables_of('malora')
    arrays = (BATCH[key] for key in ('inputs', 'positions', 'segment_ids'))
    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, *arrays)
    assert len(traced) == 1


def test_a_seed_keeps_its_initial_values_and_dropout_masks():
    """The numbers are those of versions after 0.2.0.

    They depend on how often Flax traces a layer, for example.
    """
    adapter = initial_variables(MODELS['malora'], 0)['adapter']['layers']['attention']['q']
    sums = {name: float(np.abs(leaf_L).sum()) for name, leaf_L in adapter.items()}
    expected = {'core': 44.27300, 'router': 31.89403, 'shared_down': 116.63503, 'up': 0.0}
    assert sums == pytest.approx(expected, rel=1e-5)
    change = np.abs(hidden_in_training(0.5, 1) - hidden_in_training(0.0, None)).sum()
    assert change == pytest.approx(2200.0646, rel=1e-4)


def test_dropout_is_on_in_training_only():
    plain = hidden_in_training(0.0, None)
    np.testing.assert_array_equal(hidden_in_training(0.5, None), plain)
    np.testing.assert_allclose(hidden_in_training(0.0, 1), plain, rtol=1e-5, atol=1e-5)
    first, second = hidden_in_training(0.5, 1), hidden_in_training(0.5, 2)
    np.testing.assert_array_equal(hidden_in_training(0.5, 1), first)
    assert np.abs(first - plain).max() > 0.05
    assert np.abs(first - second).max() > 0.05


@pytest.mark.parametrize('rate', [0.05, 0.5])
def test_dropout_masks_have_the_rate_and_independent_entries(rate):
    """Each count of pairs of kept entries is within five standard deviations of its mean."""
    ones_ND = jnp.ones((512, 768))
    first, second = (
        np.asarray(Dropout().apply({}, ones_ND, rate, rngs={'dropout': jax.random.key(seed)})) > 0
        for seed in (0, 1)
    )
    pairs = [first & second]
    for rows, columns in [(0, 1), (0, 2), (0, 64), (1, 0), (2, 0), (64, 0), (1, 1), (16, 16)]:
        pairs.append(first & np.roll(first, (rows, columns), axis=(0, 1)))
    keep = 1 - rate
    for kept, probability, variance in [
        (first, keep, keep * rate),
        # Entries are shared by two pairs.
        *((each, keep**2, keep**2 * (1 - keep**2) + 2 * keep**3 * rate) for each in pairs),
    ]:
        assert abs(kept.mean() - probability) < 5 * np.sqrt(variance / kept.size)


def part_outputs(part: nn.Module, variables, x_ND, train: bool) -> dict[str, np.ndarray]:
    """Return the outputs of an attention's or MLP's linears, run outside the layer scan."""
    T = x_ND.shape[0]
    one_1T = jnp.ones((1, T), jnp.int32)
    context = Context(jnp.arange(T)[None], one_1T, train=train)
    extra = (context, None) if isinstance(part, Attention) else (context,)
    _, captured = part.apply(
        variables,
        x_ND,
        *extra,
        rngs={'dropout': jax.random.key(3)},
        capture_intermediates=lambda module, _: isinstance(module, AdaptedLinear),
        mutable=['intermediates'],
    )
    return {
        name: np.asarray(value['__call__'][0]) for name, value in captured['intermediates'].items()
    }


@pytest.mark.parametrize('kind', [Attention, MLP])
def test_linears_with_one_input_share_one_dropout_mask(kind):
    # As many key/value heads as query heads, so that q, k and v can have the same weights.
    model = tiny_model(small_method('malora', dropout=0.5), num_kv_heads=4)
    part = kind(model.config, model.adapter)
    names = ('q', 'k', 'v') if kind is Attention else ('gate', 'up')
    place = 'attention' if kind is Attention else 'mlp'
    layers = {
        collection: jax.tree.map(lambda leaf: leaf[0], tree['layers'][place])
        for collection, tree in random_variables(model).items()
        if 'layers' in tree
    }
    same = {
        collection: tree | {name: tree[names[0]] for name in names}
        for collection, tree in layers.items()
    }
    x_ND = jax.random.normal(jax.random.key(0), (6, model.config.width))
    dropped, whole = part_outputs(part, same, x_ND, True), part_outputs(part, same, x_ND, False)
    assert np.abs(dropped[names[0]] - whole[names[0]]).max() > 0.05
    for name in names[1:]:
        np.testing.assert_array_equal(dropped[name], dropped[names[0]])


@pytest.mark.parametrize('kind', [Attention, MLP])
def test_masks_of_heads_are_on_in_training_only_and_differ_between_linears(kind):
    settings = {'dropout': 0.0, 'head_dropout': 0.5}
    model = tiny_model(small_method('mlora_heads', **settings), num_kv_heads=4)
    part = kind(model.config, model.adapter)
    names = ('q', 'k', 'v') if kind is Attention else ('gate', 'up')
    place = 'attention' if kind is Attention else 'mlp'
    same = {}
    for collection, tree in random_variables(model).items():
        if 'layers' in tree:
            own = jax.tree.map(lambda leaf: leaf[0], tree['layers'][place])
            same[collection] = own | {name: own[names[0]] for name in names}
    x_ND = jax.random.normal(jax.random.key(0), (6, model.config.width))
    masked, whole = part_outputs(part, same, x_ND, True), part_outputs(part, same, x_ND, False)
    for name in names[1:]:
        np.testing.assert_array_equal(whole[name], whole[names[0]])
        assert np.abs(masked[name] - masked[names[0]]).max() > 0.05
    assert np.abs(masked[names[0]] - whole[names[0]]).max() > 0.05


@pytest.mark.parametrize('kind, name', [(Attention, 'o'), (MLP, 'down')])
def test_the_last_linear_has_dropout_before_its_adapter(kind, name):
    """Only this linear is adapted, so that its input is the same with and without dropout."""
    model = tiny_model(small_method('malora', dropout=0.5, targets=(name,)))
    part = kind(model.config, model.adapter)
    place = 'attention' if kind is Attention else 'mlp'
    variables = {
        collection: jax.tree.map(lambda leaf: leaf[0], tree['layers'][place])
        for collection, tree in random_variables(model).items()
        if 'layers' in tree
    }
    x_ND = jax.random.normal(jax.random.key(0), (6, model.config.width))
    dropped, whole = (part_outputs(part, variables, x_ND, train) for train in (True, False))
    assert np.abs(dropped[name] - whole[name]).max() > 0.01
    for other in dropped.keys() - {name}:
        np.testing.assert_array_equal(dropped[other], whole[other])


def test_routers_see_the_input_without_dropout():
    model, variables = dropout_model(0.5), variables_of('malora')
    plain = jax.jit(lambda batch: losses(model, variables, batch, 2))(BATCH)
    key = jax.random.key(1)
    dropped = jax.jit(lambda batch: losses(model, variables, batch, 2, key))(BATCH)
    for path in ('layers/attention/q', 'layers/attention/k', 'layers/attention/v'):
        # Only the first layer is compared: the input of later layers depends on earlier masks.
        np.testing.assert_array_equal(
            np.asarray(plain.routing[path].probability[0]),
            np.asarray(dropped.routing[path].probability[0]),
        )
    assert not np.array_equal(
        np.asarray(plain.routing['layers/attention/q'].probability[1]),
        np.asarray(dropped.routing['layers/attention/q'].probability[1]),
    )
