"""Routing (eq. (4)), load balancing and its loss, and the routing statistics."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax import errors
from malora_jax.adapters import LowRankExperts, load_balancing, method, routers
from malora_jax.adapters.load_balancing import update_biases
from malora_jax.adapters.low_rank import project_input
from malora_jax.adapters.routers import BALANCE_BIAS
from malora_jax.adapters.scores import SCORES
from malora_jax.adapters.settings import replace_settings
from tests.helpers import reference


def logits(x_ND, router_DE):
    leaves = {'router': router_DE, 'down': router_DE[None]}
    (found,) = project_input(method('molora'), x_ND, x_ND, [leaves])
    return found.logits


def route(logits_NE, top_k, gates='softmax'):
    return routers.RouterConfig(top_k, gates=gates).route(logits_NE)


def routed(seed: int = 0, tokens: int = 40, inputs: int = 12, top_k: int = 2, renormalize=False):
    rng = np.random.default_rng(seed)
    x_ND = jnp.asarray(rng.normal(size=(tokens, inputs)), jnp.float32)
    router_DE = jnp.asarray(rng.normal(size=(inputs, 8)), jnp.float32)
    gates = 'renormalized' if renormalize else 'softmax'
    return x_ND, router_DE, route(logits(x_ND, router_DE), top_k, gates)


@pytest.mark.parametrize('renormalize', [False, True])
def test_gates_equal_the_equation(renormalize):
    x_ND, router_DE, routing = routed(renormalize=renormalize)
    W_g = np.asarray(router_DE, np.float64).T
    expected = [reference.gates(x, W_g, 2, renormalize) for x in np.asarray(x_ND, np.float64)]
    np.testing.assert_allclose(routing.gates, np.stack(expected), rtol=1e-5, atol=1e-7)
    assert np.all((np.asarray(routing.gates) > 0).sum(axis=1) == 2)
    if not renormalize:
        assert np.all(np.asarray(routing.gates).sum(axis=1) < 1)


def test_gates_of_arrow_are_a_softmax_over_the_k_largest_absolute_logits():
    logits_NE = np.random.default_rng(0).normal(size=(40, 8))
    config = routers.RouterConfig(3, gates='renormalized', scores='absolute')
    for gates_E, logits_E in zip(
        config.route(jnp.asarray(logits_NE)).gates, logits_NE, strict=True
    ):
        top_K = np.argsort(-abs(logits_E))[:3]
        expected = np.zeros(8)
        expected[top_K] = reference.softmax(abs(logits_E[top_K]))
        np.testing.assert_allclose(gates_E, expected, rtol=1e-5)


def test_equal_gates_choose_as_the_router_does_and_learn_from_balance_alone():
    x_ND, router_DE, routing = routed()
    equal = route(logits(x_ND, router_DE), 2, 'equal')
    np.testing.assert_array_equal(equal.selected, routing.selected)
    np.testing.assert_array_equal(equal.gates, 0.5 * np.asarray(routing.selected))
    W_g = np.asarray(router_DE, np.float64).T
    expected = [reference.gates(x, W_g, 2, equal_gates=True) for x in np.asarray(x_ND, np.float64)]
    np.testing.assert_array_equal(equal.gates, np.stack(expected))
    weights_NE = jnp.asarray(np.random.default_rng(1).normal(size=(40, 8)), jnp.float32)

    def both(router_DE):
        routing = route(logits(x_ND, router_DE), 2, 'equal')
        sums = load_balancing.sum_by_group(routing, jnp.ones((40, 1)))
        return jnp.stack([(routing.gates * weights_NE).sum(), load_balancing.balance_loss(sums)])

    through_gates, through_balance = jax.jacrev(both)(router_DE)
    assert not np.any(through_gates)
    assert np.abs(through_balance).max() > 1e-3


@pytest.mark.parametrize('gates', ['softmax', 'renormalized', 'equal'])
def test_a_layer_with_fewer_experts_routes_as_if_the_others_did_not_exist(gates):
    x_ND, router_DE, _ = routed()
    config, logits_NE = routers.RouterConfig(2, gates=gates), logits(x_ND, router_DE)
    found = config.route(logits_NE, None, jnp.int32(5))
    for values_NE, expected in zip(found, config.route(logits_NE[:, :5]), strict=True):
        np.testing.assert_allclose(values_NE[:, :5], expected, rtol=1e-6)
        assert not np.any(values_NE[:, 5:])
    sums = load_balancing.sum_by_group(found, jnp.ones((40, 1)))
    expected = reference.balance_loss(
        np.asarray(x_ND, np.float64), np.asarray(router_DE, np.float64).T[:5], 2
    )
    loss = load_balancing.balance_loss(jax.tree.map(lambda each: each[None], sums), np.array([5]))
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


@pytest.mark.parametrize('scores', SCORES)
def test_fewer_experts_with_a_bias(scores):
    """The bias would choose the experts that the layer does not have."""
    has_threshold = scores == 'threshold'
    config = routers.RouterConfig(2, 'x', 'renormalized', scores=scores)
    logits_NM = jnp.asarray(np.random.default_rng(0).normal(size=(40, 8 + has_threshold)))
    offset_1M = jnp.arange(8.0)[None] if not has_threshold else jnp.zeros((1, 9))
    kept = [*range(5), 8] if has_threshold else [*range(5)]
    found = config.route(logits_NM, offset_1M, jnp.int32(5))
    few = config.route(logits_NM[:, kept], offset_1M[:, kept])
    for values_NE, expected_NE in zip(found, few, strict=True):
        np.testing.assert_allclose(values_NE[:, :5], expected_NE, rtol=1e-6)
        assert not np.any(values_NE[:, 5:])


def test_a_bias_changes_the_choice_but_not_the_gates_of_an_expert():
    logits_NE = jnp.asarray(np.random.default_rng(0).normal(size=(40, 8)))
    config = routers.RouterConfig(2, bias_rate=0.1)
    plain = config.route(logits_NE, jnp.zeros((1, 8)))
    biased = config.route(logits_NE, jnp.zeros((1, 8)).at[0, 3].set(1.0))
    assert plain.selected[:, 3].mean() < 0.5
    np.testing.assert_array_equal(biased.selected[:, 3], 1)
    np.testing.assert_array_equal(biased.gates[:, 3], plain.probabilities[:, 3])
    np.testing.assert_array_equal(biased.probabilities, plain.probabilities)


@pytest.mark.parametrize('scores', ['softmax', 'absolute', 'sigmoid', 'magnitude'])
def test_gates_with_the_bias_are_the_scores_that_choose(scores):
    logits_NE, bias_E = np.random.default_rng(0).normal(size=(40, 8)), np.arange(8) / 20
    config = routers.RouterConfig(
        2, 'x', 'renormalized', scores=scores, bias_rate=0.1, bias_in_gates=True
    )
    routing = config.route(jnp.asarray(logits_NE), jnp.asarray(bias_E)[None])
    for gates, logits_E in zip(routing.gates, logits_NE, strict=True):
        choice = {
            'softmax': reference.softmax(logits_E) + bias_E,
            'absolute': reference.softmax(abs(logits_E)) + bias_E,
            'sigmoid': 1 / (1 + np.exp(-logits_E)) + bias_E,
            'magnitude': abs(logits_E + bias_E),
        }[scores]
        expected = np.where(choice >= np.sort(choice)[-2], choice, 0)
        np.testing.assert_allclose(gates, expected / expected.sum(), rtol=1e-5)


def test_a_bias_with_a_share_as_target_rises_only_without_tokens():
    adapter = method('flylora', num_experts=4, shared_rank=4, top_k=2, bias_target='share')
    load_LGE = jnp.asarray([[[1.0, 0, 30, 0], [0, 0, 1, 0]]])
    routing = {'q': load_balancing.RoutingSums(load_LGE, load_LGE, load_LGE)}
    frozen = {'q': {BALANCE_BIAS: jnp.zeros((1, 4))}}
    bias_LE = update_biases(adapter, frozen, routing)['q'][BALANCE_BIAS]
    np.testing.assert_allclose(bias_LE, 1e-3 * np.array([[-1, 1, -1, 1]]), rtol=1e-6)


def test_a_bias_balances_the_load():
    """Skewed routers approach equal loads; without the bias, one expert gets most tokens."""
    x_ND, router_DE, _ = routed(tokens=400)
    adapter = method('molora', bias_rate=0.02)
    logits_NE = logits(x_ND, router_DE) + jnp.arange(8.0)[None] / 2
    frozen = {'q': {BALANCE_BIAS: jnp.zeros((1, 8))}}

    @jax.jit
    def step(frozen):
        routing = adapter.router.route(logits_NE, frozen['q'][BALANCE_BIAS])
        sums = load_balancing.sum_by_group(routing, jnp.ones((400, 1)))
        routing = {'q': jax.tree.map(lambda each: each[None], sums)}
        return update_biases(adapter, frozen, routing), load_balancing.expert_load(sums).max()

    frozen, first = step(frozen)
    for _ in range(200):
        frozen, last = step(frozen)
    assert first > 0.2
    assert last < 0.16


def test_router_computes_in_float32_on_bfloat16_input():
    x_ND, router_DE, _ = routed()
    x_ND = x_ND.astype(jnp.bfloat16)
    low = route(logits(x_ND, router_DE), 2)
    high = route(logits(x_ND.astype(jnp.float32), router_DE), 2)
    assert low.probabilities.dtype == jnp.float32
    np.testing.assert_array_equal(low.probabilities, high.probabilities)


def test_balance_loss_equals_its_definition():
    x_ND, router_DE, routing = routed()
    sums = load_balancing.sum_by_group(routing, jnp.ones((40, 1)))
    expected = reference.balance_loss(
        np.asarray(x_ND, np.float64), np.asarray(router_DE, np.float64).T, 2
    )
    np.testing.assert_allclose(load_balancing.balance_loss(sums), expected, rtol=1e-5)


def test_the_loss_of_distances_equals_its_definition():
    """Padding does not count, and groups are added up."""
    rng = np.random.default_rng(0)
    logits_NM, offset_1M = rng.normal(size=(40, 9)), np.append(np.zeros(8), 0.5)[None]
    config = method('adamole', balance_scores='distance').router
    groups_NG = np.eye(3)[np.arange(40) % 3][:, :2]  # The third group is padding.
    real = groups_NG.any(axis=1)

    def loss(logits_NM):
        routing = config.route(logits_NM, jnp.asarray(offset_1M))
        distances_NE = config.balance_distances(logits_NM, jnp.asarray(offset_1M), None)
        sums = load_balancing.sum_by_group(routing, jnp.asarray(groups_NG), distances_NE)
        return load_balancing.balance_loss(sums)

    def expected(logits_NM):
        tau_N1 = 1 / (1 + np.exp(-logits_NM[:, -1:] - 0.5)) / 8
        d = np.stack([reference.softmax(each[:-1]) for each in logits_NM]) - tau_N1
        return reference.distance_balance(d[real], (d >= 0)[real])

    found, gradient_NM = jax.value_and_grad(loss)(jnp.asarray(logits_NM, jnp.float32))
    np.testing.assert_allclose(found, expected(logits_NM), rtol=1e-5)
    for n, m in [(0, 0), (1, 3), (2, 4), (4, 8), (39, 8)]:
        step = np.zeros_like(logits_NM)
        step[n, m] = 1e-5
        slope = (expected(logits_NM + step) - expected(logits_NM - step)) / 2e-5
        np.testing.assert_allclose(gradient_NM[n, m], slope, rtol=1e-4, atol=1e-7)
        assert bool(slope) == real[n]


@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_balanced_routing_has_loss_one_and_collapse_has_experts_over_k(top_k):
    even = jnp.full((1, 8), 5.0)
    assert load_balancing.balance_loss(
        load_balancing.RoutingSums(even, even, even)
    ) == pytest.approx(1)
    collapsed = jnp.where(jnp.arange(8) < top_k, 5.0, 0.0)[None]
    collapse = load_balancing.balance_loss(
        load_balancing.RoutingSums(collapsed, collapsed, collapsed)
    )
    assert collapse == pytest.approx(8 / top_k)


def test_layers_that_collapse_on_different_experts_are_not_balanced():
    """The loss averages over routers: here four layers each use a different pair of experts."""
    load_LGE = jnp.eye(4).repeat(2, axis=1)[:, None, :]
    loss_L = load_balancing.balance_loss(load_balancing.RoutingSums(load_LGE, load_LGE, load_LGE))
    np.testing.assert_allclose(loss_L, 4)


def test_balance_loss_pushes_probability_away_from_the_busy_expert():
    x_ND, router_DE, _ = routed()

    def loss(router_DE):
        routing = route(logits(x_ND, router_DE), 2)
        return load_balancing.balance_loss(load_balancing.sum_by_group(routing, jnp.ones((40, 1))))

    before, gradient = loss(router_DE), jax.grad(loss)(router_DE)
    assert np.abs(gradient).max() > 0
    assert loss(router_DE - 0.01 * gradient) < before


def test_padding_does_not_count():
    x_ND, router_DE, routing = routed()
    real = jnp.asarray(np.arange(40) < 25, jnp.float32)[:, None]
    masked = load_balancing.sum_by_group(routing, real)
    alone = load_balancing.sum_by_group(route(logits(x_ND[:25], router_DE), 2), jnp.ones((25, 1)))
    for found, expected in zip(masked, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sums_are_kept_apart_by_group():
    _, _, routing = routed()
    groups_NG = jax.nn.one_hot(jnp.arange(40) % 3, 3)
    sums = load_balancing.sum_by_group(routing, groups_NG)
    for group in range(3):
        own = np.arange(40) % 3 == group
        for found, each in zip(
            sums, (routing.selected, routing.probabilities, routing.gates), strict=True
        ):
            expected = np.asarray(each)[own].sum(axis=0)
            np.testing.assert_allclose(found[group], expected, rtol=1e-6)
    np.testing.assert_allclose(sums.load.sum(), 80)


def test_statistics_of_known_loads():
    assert load_balancing.effective_experts(jnp.full(8, 1 / 8)) == pytest.approx(8, rel=1e-5)
    assert load_balancing.effective_experts(jnp.asarray([1.0, 0, 0, 0])) == pytest.approx(1)
    assert load_balancing.effective_experts(jnp.asarray([0.5, 0.5, 0, 0])) == pytest.approx(
        2, rel=1e-5
    )


def test_each_token_is_routed_for_itself():
    x_ND, router_DE, routing = routed()
    changed = route(logits(x_ND.at[7].set(3.0), router_DE), 2)
    others = np.arange(40) != 7
    np.testing.assert_array_equal(changed.gates[others], routing.gates[others])
    assert not np.allclose(changed.gates[7], routing.gates[7])


def test_sums_are_sown_only_when_groups_are_given():
    experts = LowRankExperts(method('molora'), features=6)
    x_ND = jnp.ones((5, 9))
    variables = experts.init(jax.random.key(0), x_ND)
    _, collections = experts.apply(variables, x_ND, mutable=['routing'])
    assert not collections
    _, collections = experts.apply(variables, x_ND, groups=jnp.ones((5, 2)), mutable=['routing'])
    assert collections['routing']['sums'].load.shape == (2, 8)


@pytest.mark.parametrize('name', ['malora', 'hydralora'])
def test_a_router_can_see_the_shared_down_projection(name):
    """The logits are W_g S_A drop(x), and the gates follow from the equation."""
    overrides = {'rank': 4, 'shared_rank': 6 if name == 'malora' else 4}
    config = method(name, **overrides, router_input='first')
    assert replace_settings(config, top_k=3).router.input == 'first'
    experts = LowRankExperts(config, features=10)
    shapes = nn.unbox(experts.init(jax.random.key(0), jnp.ones((1, 12))))['adapter']
    assert shapes['router'].shape == (overrides['shared_rank'], 8)
    rng = np.random.default_rng(0)
    leaves = {name: rng.normal(size=leaf.shape) for name, leaf in shapes.items()}
    x_ND, dropped_ND = rng.normal(size=(2, 5, 12))
    W_g = leaves['router'].T @ leaves['shared_down'].T
    expected = []
    for dropped in dropped_ND:
        G = reference.gates(dropped, W_g, config.router.top_k)
        matrix = sum(g * reference.expert_matrix(t, leaves, config) for t, g in enumerate(G))
        expected.append(config.scale * matrix @ dropped)
    found = experts.apply({'adapter': leaves}, jnp.asarray(x_ND), jnp.asarray(dropped_ND))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_router_cannot_see_what_experts_do_not_share():
    with pytest.raises(errors.UserError, match="router_input is 'first'; it must be 'x' unless"):
        method('molora', router_input='first')
    with pytest.raises(errors.UserError, match=r"Unknown adapter\.router_input 'y'"):
        method('malora', router_input='y')


# Sampled experts.


def test_samples_without_replacement_have_their_exact_probabilities():
    """Compare 400,000 samples with all 24 ordered pairs of 4 of 5 experts, to 5 standard errors."""
    count, top_k = 400_000, 2
    logits_E = np.array([0.5, -1.0, 2.0, 0.0, 3.0], np.float32)
    logits_NE = jnp.broadcast_to(jnp.asarray(logits_E), (count, 5))
    config = routers.RouterConfig(top_k, gates='equal', samples=2)
    routing, log_N = config.sample(jax.random.key(0), logits_NE, jnp.int32(4))
    q = reference.softmax(logits_E[:4].astype(np.float64))
    assert np.all(np.asarray(routing.selected).sum(axis=1) == top_k)
    assert not np.any(routing.selected[:, 4])
    log_N, selected_NE = np.asarray(log_N, np.float64), np.asarray(routing.selected) > 0
    seen = 0
    for first, second in itertools.permutations(range(4), 2):
        expected = q[first] * q[second] / (1 - q[first])
        is_pair_N = selected_NE[:, first] & selected_NE[:, second]
        is_pair_N &= np.abs(log_N - reference.log_probability(q, (first, second))) < 1e-5
        error = np.sqrt(expected * (1 - expected) / count)
        assert abs(is_pair_N.mean() - expected) < 5 * error, (first, second)
        seen += is_pair_N.sum()
    assert seen == count


def test_the_gradient_of_the_probability_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    logits_NE, scores_NE = rng.normal(size=(2, 6, 5)).astype(np.float32)
    orders_NK = np.argsort(-scores_NE, axis=1)[:, :3]

    def log_probability(logits_NE):
        chances = map(reference.softmax, logits_NE)
        return sum(map(reference.log_probability, chances, orders_NK))

    value, gradient_NE = jax.value_and_grad(
        lambda logits_NE: routers.ordered_top_k(jnp.asarray(scores_NE), logits_NE, 3)[1].sum()
    )(jnp.asarray(logits_NE))
    point = logits_NE.astype(np.float64)
    np.testing.assert_allclose(value, log_probability(point), rtol=1e-5)
    for n, e in np.ndindex(*point.shape):
        step = np.zeros_like(point)
        step[n, e] = 1e-5
        expected = (log_probability(point + step) - log_probability(point - step)) / 2e-5
        np.testing.assert_allclose(gradient_NE[n, e], expected, rtol=1e-4, atol=1e-5)


def test_a_module_samples_with_a_stream_of_random_numbers_and_not_without():
    experts = LowRankExperts(method('remix', rank=3), 6)
    x_ND = jnp.asarray(np.random.default_rng(0).normal(size=(20, 9)), jnp.float32)
    variables = nn.unbox(experts.init(jax.random.key(0), x_ND))
    variables['adapter']['up'] += 1
    top, first, again, second = (
        experts.apply(variables, x_ND, rngs=rngs)
        for rngs in ({}, *({'selection': jax.random.key(seed)} for seed in (0, 0, 1)))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(top, first)
    assert not np.allclose(first, second)
