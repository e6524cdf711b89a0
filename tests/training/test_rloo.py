"""Routers that sample their experts: the estimator of their gradient, and the step that uses it.

Dimension letters: S selections of all tokens, M samples, L layers, T sequence, N tokens of a batch,
E experts, K experts of a token, D width, R rank.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malora_jax.adapters import routers, trees
from malora_jax.models import Decoder
from malora_jax.models.decoder import REMAT_POLICIES
from malora_jax.training import rloo
from malora_jax.training.objective import cross_entropy, token_cross_entropy
from malora_jax.training.step import losses, make_gradient_function, make_train_step
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model
from tests.helpers.reference_rloo import cost_to_go
from tests.helpers.steps import RECORDER, assert_close, make_hyperparameters, new_state

NUM_TASKS = 2
BATCH = jax.tree.map(jnp.asarray, packed_batch([(10, 9), (7, 8, 9), (), (5,)], 24))

pytestmark = pytest.mark.usefixtures('compile_quickly')


# The estimator, compared with the exact gradient.

E, K, D, R = 3, 2, 4, 2
ORDERS = np.array(list(itertools.permutations(range(E), K)))  # All selections of a token.


class Toy:
    """Layers of experts, after each of which tokens see the earlier tokens of their example."""

    def __init__(self, layers: int, segments: tuple[int, ...]):
        rng = np.random.default_rng(0)
        self.segments = np.array(segments)
        self.x_TD = rng.normal(size=(len(segments), D))
        self.down = rng.normal(size=(layers, E, D, R))
        self.up = rng.normal(size=(layers, E, R, D))
        self.mix_DD, self.head_D = rng.normal(size=(D, D)), rng.normal(size=D)
        self.routers = rng.normal(size=(layers, D, E))
        is_earlier = np.tri(len(segments), dtype=bool)
        self.sees_TT = (self.segments[:, None] == self.segments) & is_earlier

    def __call__(self, routers_LDE, orders_LTK, choose: Callable) -> tuple[jax.Array, jax.Array]:
        """Return the loss of each token and the log-probability of its selections, (T,) each."""
        x_TD, log_T = jnp.asarray(self.x_TD), 0.0
        for layer, order_TK in enumerate(orders_LTK):
            logits_TE = jax.lax.stop_gradient(x_TD) @ routers_LDE[layer]
            selected_TE, each_T = choose(logits_TE, order_TK)
            log_T += each_T
            hidden_TER = jnp.einsum('TD,EDR->TER', x_TD, self.down[layer])
            hidden_TER *= selected_TE[..., None] / K
            x_TD += jnp.einsum('TER,ERD->TD', hidden_TER, self.up[layer])
            x_TD = jnp.tanh(x_TD + self.sees_TT @ x_TD @ self.mix_DD)
        return (x_TD @ self.head_D) ** 2, log_T


def by_the_library(logits_TE, order_TK):
    """Return the mask and log Q of the library, from scores that are in the given order."""
    chosen_TKE = jax.nn.one_hot(order_TK, E, dtype=logits_TE.dtype)
    scores_TE = jnp.einsum('TKE,K->TE', chosen_TKE, jnp.arange(K, 0, -1, logits_TE.dtype))
    return routers.ordered_top_k(scores_TE, logits_TE, K)


def by_the_formula(logits_TE, order_TK):
    """Return the mask, and log Q as the product of q(i_j) / (1 - Σ_{j' < j} q(i_j'))."""
    q_TE = jnp.exp(logits_TE) / jnp.exp(logits_TE).sum(axis=-1, keepdims=True)
    q_TK = jnp.take_along_axis(q_TE, order_TK, axis=-1)
    left_TK = 1 - (jnp.cumsum(q_TK, axis=-1) - q_TK)
    mask_TE = jax.nn.one_hot(order_TK, E, dtype=q_TE.dtype).sum(axis=1)
    return mask_TE, jnp.log(q_TK / left_TK).sum(axis=-1)


@pytest.mark.parametrize(
    ('layers', 'segments', 'samples'),
    [(2, (1, 1), 2), (1, (1, 1, 2), 2), (1, (1, 2), 3), (1, (1, 1), 4)],
)
def test_the_mean_over_all_selections_is_the_exact_gradient(layers, segments, samples):
    """All M-tuples of selections are weighted by their probability: nothing is sampled."""
    toy, T = Toy(layers, segments), len(segments)
    orders_S = np.array(list(itertools.product(ORDERS, repeat=layers * T)))
    orders_S = orders_S.reshape(-1, layers, T, K)

    def expected_loss(weights):
        losses_ST, logs_ST = jax.vmap(lambda order: toy(weights, order, by_the_formula))(orders_S)
        return (jnp.exp(logs_ST.sum(axis=-1)) * losses_ST.sum(axis=-1)).sum()

    with jax.enable_x64(True):
        weights = jnp.asarray(toy.routers)
        exact = np.asarray(jax.jit(jax.grad(expected_loss))(weights))
        losses_ST, logs_ST = jax.vmap(lambda order: toy(weights, order, by_the_library))(orders_S)
        jacobian_ST = jax.vmap(
            jax.jacrev(lambda weights, order: toy(weights, order, by_the_library)[1]), (None, 0)
        )(weights, orders_S)
        chance_S = np.exp(np.asarray(logs_ST.sum(axis=-1)))
        np.testing.assert_allclose(chance_S.sum(), 1, rtol=1e-12)
        # Each tuple is a row of the batch.
        tuples = np.array(list(itertools.product(range(len(orders_S)), repeat=samples)))
        rows = np.broadcast_to(toy.segments, (tuples.size, T))
        advantages = jax.jit(jax.grad(rloo.router_loss, argnums=1), static_argnums=3)(
            losses_ST[tuples.reshape(-1)].reshape(-1), jnp.zeros((1, rows.size)), rows, samples
        )
    weight = np.prod(chance_S[tuples], axis=1, keepdims=True) / samples
    of_selection_ST = np.zeros((len(orders_S), T))
    np.add.at(
        of_selection_ST,
        tuples.reshape(-1),
        (
            np.asarray(advantages).reshape(len(tuples), -1) * np.repeat(weight, samples * T, axis=1)
        ).reshape(-1, T),
    )
    found = np.einsum('st,st...->...', of_selection_ST, np.asarray(jacobian_ST))
    assert np.abs(exact).min() > 1e-5
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_credit_is_the_loss_of_later_tokens_of_the_example():
    segments = np.asarray(BATCH['segment_ids'])
    nll = np.random.default_rng(0).normal(size=segments.shape)
    found = rloo.cost_to_go(jnp.asarray(nll, jnp.float32), jnp.asarray(segments))
    np.testing.assert_allclose(found, cost_to_go(nll, segments), rtol=1e-5, atol=1e-5)


def test_one_loss_at_the_end_gives_the_formula_of_the_paper():
    """1/(M-1) Σ_m (L_m - mean(L)) ∇ log Q_m, if all tokens are before the only loss."""
    rng = np.random.default_rng(0)
    M, T = 4, 5
    nll = np.zeros((M, T), np.float32)
    nll[:, -1] = rng.normal(size=M)
    found = jax.grad(rloo.router_loss, argnums=1)(
        jnp.asarray(nll.reshape(-1)), jnp.zeros((3, M * T)), jnp.ones((M, T), int), M
    )
    expected = (nll[:, -1:] - nll[:, -1].mean()) / (M - 1)
    expected = np.broadcast_to(expected, (M, T)).reshape(1, -1)
    np.testing.assert_allclose(found / M, np.repeat(expected, 3, axis=0), rtol=1e-5, atol=1e-6)


def test_each_token_has_its_own_cross_entropy():
    rng = np.random.default_rng(0)
    hidden_ND, head_VD = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((600, 8), (30, 8))
    )
    targets_N = jnp.asarray(rng.integers(0, 30, 600))
    weights_N = jnp.asarray(rng.integers(0, 3, 600), jnp.float32)
    cotangent_N = jnp.asarray(rng.normal(size=600), jnp.float32)

    def one_by_one(hidden_ND):
        log_NV = jax.nn.log_softmax(hidden_ND @ head_VD.T)
        return -weights_N * jnp.take_along_axis(log_NV, targets_N[:, None], axis=1)[:, 0]

    expected, expected_vjp = jax.vjp(one_by_one, hidden_ND)
    found, found_vjp = jax.vjp(
        lambda hidden_ND: token_cross_entropy(hidden_ND, head_VD, targets_N, weights_N), hidden_ND
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        *(vjp(cotangent_N)[0] for vjp in (found_vjp, expected_vjp)), 1e-4, 1e-6
    )
    total = cross_entropy(hidden_ND, head_VD, targets_N, weights_N[:, None])
    np.testing.assert_allclose(found.sum(), total[0], rtol=1e-5)


# The training step.


def sampled_model(**overrides) -> Decoder:
    return tiny_model(small_method('remix', **({'dropout': 0.5} | overrides)))


@functools.lru_cache
def gradients(model: Decoder, accumulate: int = 1, step: int = 0, seed: int = 0):
    """Return the gradient, the loss and the `Losses` of a step."""
    variables = random_variables(model)
    found, (loss, _, sums) = jax.jit(make_gradient_function(model, NUM_TASKS, accumulate))(
        new_state(variables, RECORDER, step),
        variables['params'],
        BATCH,
        make_hyperparameters(model.adapter, seed=seed),
    )
    return found, loss, sums


def test_the_router_learns_from_samples_alone_and_nothing_else_does():
    model = sampled_model()
    variables = random_variables(model)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(adapter, part):
        def of(adapter):
            sums = losses(
                model, variables | {'adapter': adapter}, BATCH, NUM_TASKS, jax.random.key(0)
            )
            return getattr(sums, part).sum()

        return jax.grad(of)(adapter)

    for part in ('nll', 'router'):
        for path, leaf in trees.named_leaves(gradient(variables['adapter'], part)):
            is_trained = path.endswith('/router') == (part == 'router')
            assert np.any(leaf) == is_trained, f'{part}: {path}'


def test_without_a_key_the_top_experts_are_used():
    """In evaluation and generation, the method is a mixture with equal gates."""
    sampled = sampled_model()
    plain = tiny_model(small_method('molora', equal_gates=True))
    variables = random_variables(sampled)
    found, expected = (losses(model, variables, BATCH, NUM_TASKS) for model in (sampled, plain))
    assert found.router is None
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_sums_are_means_over_the_samples():
    _, loss, sums = gradients(sampled_model(samples=4))
    assert sums.loss_tokens.sum() == BATCH['loss_mask'].sum()
    assert sums.tokens == (BATCH['segment_ids'] > 0).sum()
    np.testing.assert_allclose(loss, sums.nll.sum() / sums.loss_tokens.sum(), rtol=1e-6)
    for routing in sums.routing.values():
        np.testing.assert_allclose(routing.load.sum(axis=(1, 2)), 2 * sums.tokens, rtol=1e-6)


@pytest.mark.parametrize('remat', [name for name in REMAT_POLICIES if name != 'none'])
def test_rematerialization_draws_the_same_samples(remat):
    model = sampled_model()
    expected, loss, _ = gradients(model)
    found, found_loss, _ = gradients(Decoder(model.config, model.adapter, remat))
    np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
    assert_close(found, expected, 1e-4)


def test_gradients_of_micro_batches_add_up():
    """Each micro-batch has samples of its own, and the loss is the mean over all tokens."""
    model = sampled_model()
    found, loss, _ = gradients(model, accumulate=2)
    variables, tokens = random_variables(model), BATCH['loss_mask'].sum()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(adapter, part, key):
        sums = losses(model, variables | {'adapter': adapter}, part, NUM_TASKS, key)
        return (sums.nll.sum() + sums.router) / tokens, sums.nll.sum() / tokens

    parts = [{name: rows[i : i + 2] for name, rows in BATCH.items()} for i in (0, 2)]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    each = [gradient(variables['adapter'], *both) for both in zip(parts, keys, strict=True)]
    assert_close(found, jax.tree.map(jnp.add, each[0][0], each[1][0]), 1e-5)
    np.testing.assert_allclose(loss, each[0][1] + each[1][1], rtol=1e-5)


def test_samples_depend_on_the_seed_and_the_step_alone():
    model = sampled_model(dropout=0.0)
    first = gradients(model)[0]
    again = gradients.__wrapped__(model)[0]
    jax.tree.map(np.testing.assert_array_equal, again, first)
    for other in (gradients(model, step=1)[0], gradients(model, seed=1)[0]):
        for (path, a), (_, b) in zip(*map(trees.named_leaves, (first, other)), strict=True):
            assert not np.allclose(a, b, rtol=1e-2), path


def test_tokens_sent_to_their_experts_are_sampled_in_the_same_way():
    expected, loss, _ = gradients(sampled_model(dropout=0.0))
    found, found_loss, _ = gradients(sampled_model(dropout=0.0, dispatch=True))
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    assert_close(found, expected, 1e-4)


def test_experts_that_a_layer_lacks_are_never_sampled():
    found, _, sums = gradients(sampled_model(experts_per_layer=(2, 4)))
    for routing in sums.routing.values():
        load_LE = routing.load.sum(axis=1)
        assert not np.any(load_LE[0, 2:])
        assert np.all(load_LE[1] > 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_runs_that_train_jointly_draw_their_own_samples():
    model = sampled_model()
    variables, optimizer = random_variables(model), optax.sgd(0.1)

    def step(seeds, is_joint: bool):
        make = make_train_step(model, optimizer, lambda _: 0.0, NUM_TASKS, is_joint=is_joint)
        states = [new_state(variables, optimizer) for _ in seeds]
        numbers = [make_hyperparameters(model.adapter, seed=seed) for seed in seeds]
        arguments = [states, [BATCH] * len(seeds), numbers]
        if is_joint:
            state, batch, number = (
                jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in arguments
            )
        else:
            ((state,), (batch,), (number,)) = arguments
        return make(state, variables['params'], batch, number)[0].adapter

    together = step([3, 5], is_joint=True)
    for run, seed in enumerate([3, 5]):
        alone = step([seed], is_joint=False)
        assert_close(jax.tree.map(lambda leaf, run=run: leaf[run], together), alone, 1e-5)
