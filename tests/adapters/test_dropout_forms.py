"""Forms of dropout in published code: masks of each expert, of the router's input and of cores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from malora_jax.adapters import LowRankExperts, method
from malora_jax.adapters.comol import CoMoL
from malora_jax.adapters.dropout import dropout
from malora_jax.adapters.low_rank import project_input
from malora_jax.adapters.settings import replace_settings, settings_of
from malora_jax.models import linear
from malora_jax.models.context import Context
from malora_jax.models.decoder import Attention
from malora_jax.models.linear import Dropout
from tests.helpers import reference
from tests.helpers.models import random_variables, small_method, tiny_model

pytestmark = pytest.mark.usefixtures('compile_quickly')

INPUTS, OUTPUTS, TOKENS, EXPERTS, RANK, RATE = 11, 9, 7, 4, 3, 0.25
KEY = jax.random.key(5)
SIZES = dict(num_experts=EXPERTS, rank=RANK, alpha=5.0)
DENSE = SIZES | dict(top_k=EXPERTS)
# Methods whose experts have down-projections of their own.
EXPERT_MASKS = {
    'molora': SIZES,
    'malora_unshared': SIZES | dict(shared_rank=8),
    'malora_shared_up': SIZES | dict(shared_rank=6),
    'alora': DENSE | dict(shared_rank=RANK),
    'adamole': DENSE,
    'd2mora': DENSE | dict(num_up_experts=5),
    'goat': dict(num_experts=3, rank=RANK, alpha=1.0),
}
ROUTER_DROPOUT = {
    'smora': dict(num_experts=8, shared_rank=8, top_k=3),
    'malora': SIZES | dict(shared_rank=6),
    'adamole': DENSE,
    'd2mora': DENSE | dict(num_up_experts=5),
    'goat': dict(num_experts=3, rank=RANK, alpha=1.0),
    'malora_dispatch': SIZES | dict(shared_rank=6),
}
FORMS = {
    f'{name} {form}': (name, sizes | {form: value})
    for form, value, methods in (
        ('dropout_masks', 'expert', EXPERT_MASKS),
        ('router_dropout', True, ROUTER_DROPOUT),
    )
    for name, sizes in methods.items()
}
CONFIGS = {name: method(base, **changes) for name, (base, changes) in FORMS.items()}
COMOL = method('comol', **DENSE, shared_rank=RANK, core_dropout=RATE)


def random_leaves(config, seed=0):
    """Return float64 leaves, B included, so that the update is of order one."""
    experts = LowRankExperts(config, OUTPUTS)
    shapes = nn.unbox(jax.eval_shape(experts.init, KEY, jnp.zeros((1, INPUTS))))
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=leaf.shape) / leaf.shape[-2 if leaf.ndim > 1 else -1] ** 0.5
        for tree in (shapes['adapter'], shapes.get('adapter_frozen', {}))
        for name, leaf in tree.items()
    }


def random_inputs(config, seed=1):
    """Return x, and x after dropout: with a mask for each expert, or with one mask."""
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(TOKENS, INPUTS))
    has_masks = config.dropout_masks == 'expert'
    shape = (config.num_experts, *x_ND.shape) if has_masks else x_ND.shape
    return x_ND, np.where(rng.random(shape) > RATE, x_ND / (1 - RATE), 0)


def apply(config, leaves, *inputs, **options):
    """Return the update."""
    variables = {'adapter': {}, 'adapter_frozen': {}}
    for name, leaf in leaves.items():
        variables[config.collection(name)][name] = leaf
    experts = LowRankExperts(config, OUTPUTS)
    return jax.jit(functools.partial(experts.apply, **options))(variables, *inputs)


def assert_close(found, expected):
    """Compare to 1e-6 of the largest entry."""
    size = np.abs(expected).max()
    assert size > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * size)


def assert_gradients_are_central_differences(gradients, value, point):
    """Compare along a random direction in each leaf, to 1e-6 of the typical size."""
    rng, step = np.random.default_rng(6), 1e-5
    leaves, tree = jax.tree.flatten(point)
    for index, gradient in enumerate(jax.tree.leaves(gradients)):
        direction = rng.normal(size=gradient.shape)
        ends = [
            value(tree.unflatten([*leaves[:index], leaves[index] + move, *leaves[index + 1 :]]))
            for move in (step * direction, -step * direction)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        size = np.linalg.norm(gradient)
        assert size > 0.01 or expected == 0
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize('name', CONFIGS)
def test_updates_and_gradients_in_float64(name):
    config = CONFIGS[name]
    leaves, inputs = random_leaves(config), random_inputs(config)
    weights_NF = np.random.default_rng(2).normal(size=(TOKENS, OUTPUTS))
    with jax.enable_x64(True):
        point = jax.tree.map(jnp.asarray, (leaves, *inputs))
        found = apply(config, *point)
        gradients = jax.jit(jax.grad(lambda point: (apply(config, *point) * weights_NF).sum()))(
            point
        )
        gradients = jax.tree.map(np.asarray, gradients)

    def value(point):
        leaves, x_ND, dropped = point
        return (reference.adapter_update(x_ND, leaves, config, dropped) * weights_NF).sum()

    assert_close(found, reference.adapter_update(inputs[0], leaves, config, inputs[1]))
    assert_gradients_are_central_differences(gradients, value, (leaves, *inputs))


@pytest.mark.parametrize('name', CONFIGS)
def test_forms_change_the_update_in_training_alone(name):
    """Without dropout, as in evaluation or with the rate zero, the update is the paper's."""
    config = CONFIGS[name]
    paper = replace_settings(config, dropout_masks='shared', router_dropout=False)
    leaves, (x_ND, dropped) = random_leaves(config), random_inputs(config)
    np.testing.assert_array_equal(apply(config, leaves, x_ND), apply(paper, leaves, x_ND))
    shared_ND = dropped if dropped.ndim == 2 else dropped[0]
    expected = reference.adapter_update(x_ND, leaves, paper, shared_ND)
    assert np.abs(apply(config, leaves, x_ND, dropped) - expected).max() > 0.01
    if dropped.ndim == 3:
        same = np.broadcast_to(shared_ND, dropped.shape)
        np.testing.assert_allclose(apply(config, leaves, x_ND, same), expected, atol=1e-5)


@pytest.mark.parametrize('name', EXPERT_MASKS)
def test_linears_that_share_their_inputs_are_what_each_is_alone(name):
    config = CONFIGS[f'{name} dropout_masks']
    leaves = [jax.tree.map(jnp.asarray, random_leaves(config, seed)) for seed in range(3)]
    x_ND, dropped = map(jnp.asarray, random_inputs(config))
    projected = project_input(config, x_ND, tuple(dropped), leaves)
    experts = LowRankExperts(config, OUTPUTS)
    for each, own in zip(projected, leaves, strict=True):
        found = experts.apply({}, each, own, None, method=experts.update)
        np.testing.assert_allclose(found, apply(config, own, x_ND, dropped), atol=1e-5)


# Masks of the model's inputs.


def test_masks_of_experts_are_independent_and_keep_the_mean():
    tokens = 4000
    masks = Dropout('expert', EXPERTS).apply({}, jnp.ones((tokens, 5)), RATE, rngs={'dropout': KEY})
    again = Dropout('expert', EXPERTS).apply({}, jnp.ones((tokens, 5)), RATE, rngs={'dropout': KEY})
    np.testing.assert_array_equal(masks, again)
    assert len(masks) == EXPERTS
    kept_PN = np.concatenate([np.asarray(mask).T for mask in masks]) > 0
    np.testing.assert_allclose(np.unique(masks), [0, 1 / (1 - RATE)], rtol=1e-6)
    deviation = (RATE * (1 - RATE) / tokens) ** 0.5
    assert np.abs(kept_PN.mean(axis=1) - (1 - RATE)).max() < 5 * deviation
    correlations = np.corrcoef(kept_PN) - np.eye(len(kept_PN))
    assert np.abs(correlations).max() < 5 / tokens**0.5


def inputs_of_experts(monkeypatch, train: bool, **changes):
    """Return x and the input after dropout that q, k and v of a layer are given together."""
    given = []

    def recorded(config, x_ND, after_dropout, leaves):
        given.append((x_ND, after_dropout))
        return project_input(config, x_ND, after_dropout, leaves)

    adapter = small_method('alora', dropout_masks='expert', targets=('q', 'k', 'v'), **changes)
    model = tiny_model(adapter)
    layer = {
        name: jax.tree.map(lambda leaf: leaf[0], tree['layers']['attention'])
        for name, tree in random_variables(model).items()
    }
    x_ND = jax.random.normal(KEY, (6, model.config.width))
    context = Context(jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32), train=train)
    monkeypatch.setattr(linear, 'project_input', recorded)
    Attention(model.config, adapter).apply(layer, x_ND, context, None, rngs={'dropout': KEY})
    ((x_ND, after_dropout),) = given
    return np.asarray(x_ND), after_dropout


def test_each_expert_has_a_mask_of_the_input_in_training(monkeypatch):
    x_ND, after_dropout = inputs_of_experts(monkeypatch, True, dropout=RATE)
    assert isinstance(after_dropout, tuple) and len(after_dropout) == 4
    kept = [np.asarray(each) != 0 for each in after_dropout]
    for each, is_kept in zip(after_dropout, kept, strict=True):
        np.testing.assert_allclose(each, np.where(is_kept, x_ND / (1 - RATE), 0), rtol=1e-6)
    for index, is_kept in enumerate(kept[1:]):
        assert 0.2 < np.mean(is_kept != kept[index]) < 0.55


@pytest.mark.parametrize(('train', 'rate'), [(False, RATE), (True, 0.0)])
def test_no_masks_in_evaluation_or_with_the_rate_zero(monkeypatch, train, rate):
    x_ND, after_dropout = inputs_of_experts(monkeypatch, train, dropout=rate)
    np.testing.assert_array_equal(after_dropout, x_ND)


# CoMoL's cores.


def core_masks(rank=RANK, tokens=TOKENS):
    """Return the masks of the merged core, (N, S, R), and of its product, (N, R), as factors."""
    core_key, product_key = jax.random.split(KEY)
    rows = [
        dropout(jax.random.fold_in(core_key, row), jnp.ones((tokens, rank)), RATE)
        for row in range(rank)
    ]
    product_NR = dropout(product_key, jnp.ones((tokens, rank)), RATE)
    # The library stores a core transposed, so that its rows are the columns of C_t.
    return np.stack(rows, axis=1).astype(float), np.asarray(product_NR, float)


def comol_by_hand(leaves, h_NR, gates_NE, scale):
    """Return s B (m' ⊙ ((m ⊙ Σ_t G_t C_t) h)) for h = A x, token by token."""
    masks_NSR, product_NR = core_masks()
    B, y = leaves['shared_up'].T, []
    for h, G, m, m_product in zip(h_NR, gates_NE, masks_NSR, product_NR, strict=True):
        C = sum(g * C_t.T for g, C_t in zip(G, leaves['core'], strict=True))
        y.append(scale * B @ (m_product * ((m.T * C) @ h)))
    return np.stack(y)


def comol_arguments():
    rng = np.random.default_rng(3)
    leaves = random_leaves(COMOL)
    gates_NE = rng.dirichlet(np.ones(EXPERTS), size=TOKENS)
    return (
        {name: leaves[name] for name in ('core', 'shared_up')},
        rng.normal(size=(TOKENS, RANK)),
        gates_NE,
    )


def test_masked_cores_and_gradients_in_float64():
    point, scale = comol_arguments(), 1.7
    weights_NF = np.random.default_rng(2).normal(size=(TOKENS, OUTPUTS))

    def update(leaves, h_NR, gates_NE):
        scales = jnp.asarray(scale, h_NR.dtype)
        return COMOL.structure.masked_update(KEY, h_NR, leaves, scales, gates_NE)

    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, point)
        found = jax.jit(update)(*arrays)
        gradients = jax.jit(jax.grad(lambda point: (update(*point) * weights_NF).sum()))(arrays)
        gradients = jax.tree.map(np.asarray, gradients)
    assert_close(found, comol_by_hand(*point, scale))
    assert_gradients_are_central_differences(
        gradients, lambda point: (comol_by_hand(*point, scale) * weights_NF).sum(), point
    )


def test_masks_of_cores_are_independent_and_keep_the_mean():
    """The update of ones shows the masks: of each entry of the core, and of the product."""
    tokens, structure = 4000, CoMoL(2, RANK, RATE)
    gates_NE = jnp.full((tokens, 2), 0.5)
    leaves = {'core': jnp.ones((2, RANK, RANK)), 'shared_up': jnp.eye(RANK)}
    products_NSR = np.stack(
        [
            structure.masked_update(
                KEY, jnp.tile(jnp.eye(RANK)[row], (tokens, 1)), leaves, 1.0, gates_NE
            )
            for row in range(RANK)
        ],
        axis=1,
    )
    np.testing.assert_allclose(np.unique(products_NSR), [0, 1 / (1 - RATE) ** 2], rtol=1e-6)
    kept = (1 - RATE) ** 2
    deviation = (kept * (1 - kept) / tokens) ** 0.5
    assert np.abs((products_NSR > 0).mean(axis=0) - kept).max() < 5 * deviation
    # Entries of the core in different columns have no common mask; those of a column have one.
    columns = (products_NSR > 0).reshape(tokens, -1).T
    correlations_SRSR = np.corrcoef(columns).reshape(RANK, RANK, RANK, RANK)
    for a in range(RANK):
        for b in set(range(RANK)) - {a}:
            assert np.abs(correlations_SRSR[:, a, :, b]).max() < 5 / tokens**0.5
            # P(both kept) is (1 - p)³, so the correlation is (1 - p) p / (1 - (1 - p)²) · (1 - p).
            common = ((1 - RATE) ** 3 - kept**2) / (kept * (1 - kept))
            assert np.abs(correlations_SRSR[a, :, b, :].diagonal() - common).max() < 0.1


def test_a_lower_rank_has_a_part_of_the_masks_of_cores():
    """Runs of different ranks, whose parameters are padded, can therefore be trained together."""
    tokens = 5
    for rank in (2, RANK):
        masks = core_masks(rank, tokens)
        np.testing.assert_array_equal(masks[0], core_masks(RANK, tokens)[0][:, :rank, :rank])
        np.testing.assert_array_equal(masks[1], core_masks(RANK, tokens)[1][:, :rank])


def test_cores_have_masks_in_training_alone():
    leaves, (x_ND, dropped_ND) = random_leaves(COMOL), random_inputs(COMOL)
    plain = reference.adapter_update(x_ND, leaves, COMOL, dropped_ND)
    without = replace_settings(COMOL, core_dropout=0.0)
    streams = {'rngs': {'dropout': KEY}}
    for config, train in ((COMOL, False), (without, True), (without, False)):
        found = apply(config, leaves, x_ND, dropped_ND, train=train, **streams)
        np.testing.assert_allclose(found, plain, atol=1e-5)
    masked, again, other = (
        apply(COMOL, leaves, x_ND, dropped_ND, train=True, rngs={'dropout': jax.random.key(seed)})
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(masked, again)
    assert np.abs(masked - plain).max() > 0.1
    assert np.abs(masked - other).max() > 0.1


def test_masked_cores_have_the_gates_of_the_router():
    """With a rate that drops nothing, the masked update is the paper's."""
    config = replace_settings(COMOL, core_dropout=1e-9)
    leaves, (x_ND, dropped_ND) = random_leaves(config), random_inputs(config)
    found = apply(config, leaves, x_ND, dropped_ND, train=True, rngs={'dropout': KEY})
    np.testing.assert_allclose(
        found, reference.adapter_update(x_ND, leaves, config, dropped_ND), atol=1e-5
    )


def test_core_dropout_is_a_setting_of_the_structure():
    assert COMOL.structure == CoMoL(EXPERTS, RANK, RATE)
    assert COMOL.structure.has_masks and not method('comol').structure.has_masks
    assert settings_of(COMOL).core_dropout == RATE
    assert settings_of(method('moslora')).core_dropout == 0
