"""Routing sums by question and by token, compared with training's sums and manual sums."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters.load_balancing import mean_balance_loss
from malora_jax.adapters.settings import replace_settings
from malora_jax.analysis import held_out_routing
from malora_jax.analysis.router_stats import compute_router_stats
from malora_jax.analysis.routing import by_task
from malora_jax.training.held_out_loss import held_out_losses
from malora_jax.training.step import routing_by_path
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model

pytestmark = pytest.mark.slow

MODEL = tiny_model(small_method('malora'))
LENGTHS = [[9, 5, 4], [12], [8, 8]], [[7], [6, 6, 5], []]


@pytest.fixture(scope='module')
def batches():
    """Batches of six and four questions with few different tokens, so that some are frequent."""
    made = [packed_batch(rows, 20, seed=seed) for seed, rows in enumerate(LENGTHS)]
    for batch in made:
        batch['inputs'] = np.where(batch['segment_ids'] > 0, batch['inputs'] % 7 + 3, 0)
    return made


@pytest.fixture(scope='module')
def variables():
    return random_variables(MODEL)


@pytest.fixture(scope='module')
def asked(batches):
    return held_out_routing.index_questions(batches)


@pytest.fixture(scope='module')
def found(variables, asked):
    return held_out_routing.sum_routing(MODEL, variables, asked, 'route')


def test_questions_are_numbered_and_padding_is_none(asked):
    assert asked.per_batch == [6, 4]
    assert asked.task.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    for batch, rows in zip(asked.batches, LENGTHS, strict=True):
        sizes = [size for row in rows for size in row]
        counts = collections.Counter(batch['groups'].ravel().tolist())
        assert [counts[number] for number in range(len(sizes))] == sizes
        assert counts[-1] == 60 - sum(sizes)


def test_frequent_tokens_are_counted(asked, batches):
    tokens = np.concatenate([b['inputs'][b['segment_ids'] > 0] for b in batches])
    counts = collections.Counter(tokens.tolist())
    kept = {word: count for word, count in counts.items() if count >= 8}
    assert 0 < len(kept) < len(counts)
    assert dict(zip(asked.tokens.tolist(), asked.counts.tolist(), strict=True)) == kept
    assert sorted(asked.counts, reverse=True) == asked.counts.tolist()


def test_by_task_they_are_the_sums_of_training(found, asked, batches, variables):
    expected = held_out_losses(MODEL, variables, batches, 2).routing
    assert len(expected) == len(found.by_question) == 6
    for path, sums in expected.items():
        own = found.by_question[path.rsplit('/', 1)[-1]]
        for ours, theirs in zip(own, sums, strict=True):
            np.testing.assert_allclose(by_task(ours, asked.task), theirs, rtol=1e-5)


def sums_of_each_token(model, variables, batches):
    """Yield a batch, the name of a linear module, and its sums with each position as a group."""
    for batch in batches:
        alone_NN = jnp.eye(batch['inputs'].size)
        inputs = (batch[key] for key in ('inputs', 'positions', 'segment_ids'))
        _, sown = model.apply(variables, *inputs, alone_NN, mutable=['routing'])
        for path, sums in routing_by_path(sown['routing']).items():
            yield batch, path.rsplit('/', 1)[-1], sums


def test_every_token_of_a_question_counts(found):
    sizes = [size for rows in LENGTHS for row in rows for size in row]
    for sums in found.by_question.values():
        slots_QL = np.asarray(sums.load).sum(axis=-1)
        np.testing.assert_array_equal(slots_QL, 2 * np.tile(sizes, (len(slots_QL.T), 1)).T)


def test_words_are_the_sums_over_their_occurrences(found, asked, batches, variables):
    """Expected sums: each position is its own group, and each token's groups are added."""
    expected: dict[str, np.ndarray] = {}
    for batch, name, sums in sums_of_each_token(MODEL, variables, batches):
        for w, word in enumerate(asked.tokens):
            here_N = ((batch['inputs'] == word) & (batch['segment_ids'] > 0)).ravel()
            shape = (len(sums.load), len(asked.tokens), sums.load.shape[-1])
            total = expected.setdefault(name, np.zeros(shape))
            total[:, w] += np.asarray(sums.load)[:, here_N].sum(axis=1)
    for name, load_LWE in expected.items():
        np.testing.assert_array_equal(found.by_token[name], load_LWE)
        np.testing.assert_array_equal(load_LWE[0].sum(axis=-1), 2 * asked.counts)


@pytest.mark.parametrize(
    ('method', 'settings'),
    [
        ('malora', {}),
        ('malora', {'renormalize': True}),
        ('hydralora', {}),
        ('adamole', {}),
    ],
)
def test_the_sum_of_gates_is_the_mean_over_the_tokens(asked, batches, method, settings):
    model = tiny_model(small_method(method, **settings))
    variables = random_variables(model)
    found = held_out_routing.sum_routing(model, variables, asked, 'route')
    stats = compute_router_stats(model.adapter, [*found.by_question], found, asked.task)
    sums_by_linear: dict[str, list[np.ndarray]] = {}
    for batch, name, sums in sums_of_each_token(model, variables, batches):
        gates_LN = np.asarray(sums.gate).sum(axis=-1)[:, (batch['segment_ids'] > 0).ravel()]
        sums_by_linear.setdefault(name, []).append(gates_LN)
    expected_JL = [
        np.concatenate(sums_by_linear[name], axis=1).mean(axis=1) for name in found.by_question
    ]
    np.testing.assert_allclose(stats.gate_sum, expected_JL, rtol=1e-5)
    assert (stats.gate_sum < 0.99).all() == (method == 'malora' and not settings)


def test_the_loss_of_distances_is_that_of_training(asked, batches):
    model = tiny_model(small_method('adamole', balance_scores='distance'))
    variables = random_variables(model)
    found = held_out_routing.sum_routing(model, variables, asked, 'route')
    expected = held_out_losses(model, variables, batches, 2).routing
    stats = compute_router_stats(model.adapter, [*found.by_question], found, asked.task)
    loss = mean_balance_loss(expected, model.adapter)
    np.testing.assert_allclose(stats.means()['balance_loss'], loss, rtol=1e-5)
    paper = replace_settings(model.adapter, balance_scores='probability')
    plain = held_out_losses(tiny_model(paper), variables, batches, 2).routing
    assert abs(loss - mean_balance_loss(plain, paper)) > 0.01
