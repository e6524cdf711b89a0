"""Log-likelihoods of continuations, as perplexity needs them, against a float64 reference."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.evaluation import likelihood
from malora_jax.evaluation.likelihood import (
    Likelihood,
    log_likelihoods,
    rolling_log_likelihoods,
    rolling_windows,
)
from tests.helpers.models import random_variables, small_method, tiny_model
from tests.helpers.reference_decoder import ReferenceDecoder, choice_scores, routing_margin

MODELS = {
    name: tiny_model(small_method(name) if name != 'base' else None) for name in ('base', 'malora')
}


pytestmark = pytest.mark.usefixtures('compile_quickly')


@functools.cache
def variables_of(name: str) -> dict[str, Any]:
    return random_variables(MODELS[name], seed=2)


def tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(3, 300, count).tolist()


def questions(seed: int, *shapes: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return (context, continuation) pairs; a shape is a context's length, then continuations'."""
    rng = np.random.default_rng(seed)
    contexts = [(tokens(rng, first), rest) for first, *rest in shapes]
    return [(context, tokens(rng, length)) for context, rest in contexts for length in rest]


# One request of each kind of sharing: single letters, texts, a text that starts with another, and a
# duplicate.
REQUESTS = questions(0, (9, 1, 1, 1, 1), (5, 3, 4, 2), (1, 1), (20, 11), (3, 7))
REQUESTS += [(REQUESTS[4][0], REQUESTS[4][1][:2]), REQUESTS[0]]


def scores(requests, name='malora', *, batch_size=4, bucket=32) -> list[Likelihood]:
    model, variables = MODELS[name], variables_of(name)
    return log_likelihoods(model, variables, requests, batch_size=batch_size, pad_multiple=bucket)


def reference_logits(name: str, text: list[int]) -> np.ndarray:
    """Return float64 logits (T, V); rounding must not change the routing of this text."""
    model, one = MODELS[name], np.ones((1, len(text)), int)
    reference = ReferenceDecoder(model.config, variables_of(name), model.adapter)
    outputs = reference(np.array([text]), np.arange(len(text))[None], one)
    if model.adapter is not None:
        assert routing_margin(choice_scores(outputs, one), model.adapter.router) > 1e-5
    return outputs.logits[0]


def reference_score(name: str, context: list[int], continuation: list[int]) -> Likelihood:
    rows = reference_logits(name, context + continuation)[len(context) - 1 : -1]
    top = rows.max(axis=-1)
    log_sum = top + np.log(np.exp(rows - top[:, None]).sum(axis=-1))
    nats = rows[np.arange(len(rows)), continuation] - log_sum
    greedy = (rows.argmax(axis=-1) == continuation).all()
    return Likelihood(nats.sum(), len(continuation), bool(greedy))


def check_close(
    found: list[Likelihood], expected: list[Likelihood], tolerance: float = 1e-5
) -> None:
    """Check that results are equal; log probabilities may differ by the tolerance per token."""
    for a, b in zip(found, expected, strict=True):
        assert a[1:] == b[1:]
        assert abs(a.log_probability - b.log_probability) <= tolerance * max(a.num_tokens, 1)


@pytest.mark.parametrize('name', MODELS)
def test_against_the_reference(name):
    requests = list(REQUESTS)
    # The model's own greedy continuation, and the same with another last token.
    said = tokens(np.random.default_rng(3), 6)
    for _ in range(3):
        said.append(int(reference_logits(name, said)[-1].argmax()))
    requests += [(said[:6], said[6:]), (said[:6], [*said[6:8], 3 + said[8] % 7])]
    expected = [reference_score(name, *request) for request in requests]
    assert [score.is_greedy for score in expected] == [False] * (len(requests) - 2) + [True, False]
    check_close(scores(requests, name), expected)


def test_the_adapter_changes_the_scores():
    adapted, base = scores(REQUESTS), scores(REQUESTS, 'base')
    differences = [
        abs(a.log_probability - b.log_probability) for a, b in zip(adapted, base, strict=True)
    ]
    assert min(differences) > 0.01


shapes = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=5), min_size=1, max_size=4)


@settings(deadline=None, max_examples=6)
@given(shapes, st.integers(1, 4), st.sampled_from([3, 16, 40]), st.integers(0, 99))
def test_what_is_computed_beside_it_changes_no_score(sizes, batch_size, bucket, seed):
    # The base model, because rounding could change the choice of a router that is nearly undecided.
    requests = questions(seed, *sizes)
    found = scores(requests, 'base', batch_size=batch_size, bucket=bucket)
    alone = [scores([request], 'base', batch_size=1)[0] for request in requests]
    check_close(found, alone)


@pytest.mark.parametrize('batch_size, bucket', [(1, 5), (3, 16), (64, 64)])
def test_nor_with_an_adapter(batch_size, bucket):
    found = scores(REQUESTS, batch_size=batch_size, bucket=bucket)
    check_close(found, [scores([request])[0] for request in REQUESTS])


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12))
def test_texts_that_others_begin_with_are_computed_once(texts):
    groups = likelihood._group_by_prefix([tuple(text) for text in texts])
    assert sorted(i for group in groups for i in group) == list(range(len(texts)))
    computed = [texts[first] for first, *_ in groups]
    for group, whole in zip(groups, computed, strict=True):
        assert all(whole[: len(texts[i])] == texts[i] for i in group)
    for i, text in enumerate(computed):
        assert not any(other[: len(text)] == text for other in computed[:i] + computed[i + 1 :])


@settings(max_examples=200)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 20))
def test_rows_are_filled(lengths, bucket):
    rows = likelihood._pack(lengths, bucket)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    left = []
    for row in rows:
        sizes = [lengths[i] for i in row]
        assert sizes == sorted(sizes, reverse=True)
        left.append(-sizes[0] // bucket * -bucket - sum(sizes))
    assert all(room >= 0 for room in left)
    # A row's first request did not fit into any earlier row.
    for i, row in enumerate(rows):
        assert all(room < lengths[row[0]] for room in left[:i])


@pytest.fixture
def computed(monkeypatch) -> dict[str, list]:
    """Recorded shapes of the inputs to the decoder and the head."""
    seen: dict[str, list] = {'decoder': [], 'positions': [], 'head': []}
    hidden, predict = likelihood._hidden, likelihood._score_chunk

    def spied_hidden(model, variables, tokens_BT, positions_BT, segments_BT):
        seen['decoder'].append(tokens_BT.shape)
        seen['positions'].append(int((segments_BT > 0).sum()))
        return hidden(model, variables, tokens_BT, positions_BT, segments_BT)

    def spied_predict(hidden_ND, head_VD, places_P, targets_P):
        seen['head'].append(places_P.shape)
        return predict(hidden_ND, head_VD, places_P, targets_P)

    monkeypatch.setattr(likelihood, '_hidden', spied_hidden)
    monkeypatch.setattr(likelihood, '_score_chunk', spied_predict)
    return seen


def test_the_letters_of_a_question_cost_it_once(computed):
    scores(questions(0, (30, 1, 1, 1, 1)))
    assert computed == {'decoder': [(1, 32)], 'positions': [30], 'head': [(likelihood.CHUNK_SIZE,)]}


def test_rows_of_a_length_make_batches_of_one_shape(computed):
    scores(questions(0, *[(20, 1)] * 9, (46, 1), (46, 4)), batch_size=4, bucket=32)
    # A batch has four rows of 32 positions, or two of 64; nine rows are three batches of three.
    assert computed['decoder'] == [(2, 64), (3, 32), (3, 32), (3, 32)]


def test_the_head_runs_where_a_continuation_is_predicted(monkeypatch, computed):
    requests = questions(0, (30, 3, 5), (9, 7))
    expected = scores(requests)
    monkeypatch.setattr(likelihood, 'CHUNK_SIZE', 4)
    computed['head'].clear()
    check_close(scores(requests), expected)
    assert computed['head'] == [(4,)] * math.ceil((3 + 5 + 7) / 4)


def test_no_requests_no_scores():
    assert scores([]) == []


def test_progress_is_told_after_each_batch(computed):
    model, variables = MODELS['base'], variables_of('base')
    counts = []
    log_likelihoods(
        model, variables, REQUESTS, batch_size=4, pad_multiple=32, advance=counts.append
    )
    assert sum(counts) == len(REQUESTS) and len(counts) == len(computed['decoder'])


SHORT = tiny_model(context=16)


def short_scores(*requests) -> list[Likelihood]:
    return log_likelihoods(SHORT, variables_of('base'), requests, batch_size=2, pad_multiple=8)


def test_the_context_of_what_is_too_long_loses_its_beginning():
    ((context, continuation),) = questions(2, (15, 4))
    (found,) = short_scores((context, continuation))
    # There are 16 positions; the last token is only predicted.
    check_close([found], short_scores((context[2:], continuation)))
    assert abs(found.log_probability - short_scores((context[3:], continuation))[0][0]) > 2e-4
    # Only the token from which the first one is predicted remains of this context.
    ((context, continuation),) = questions(2, (15, 16))
    check_close(short_scores((context, continuation)), short_scores((context[-1:], continuation)))


@pytest.mark.parametrize(
    'request_, message',
    [
        (([], [5]), 'Request 1 has an empty context; it must have at least one token.'),
        (([5], []), 'Request 1 has an empty continuation; it must have at least one token.'),
        (
            ([5], [6] * 17),
            'Request 1 has a continuation of 17 tokens; at most 16 fit into the context of the '
            'model.',
        ),
    ],
)
def test_what_cannot_be_scored(request_, message):
    with pytest.raises(UserError) as caught:
        short_scores(([5], [6]), request_)
    assert str(caught.value) == message


def test_windows():
    """The example is from the documentation of lm_eval's `loglikelihood_rolling`, with BOS 99."""
    assert rolling_windows(range(10), 99, 4) == [
        ([99], range(0, 4)),
        ([3], range(4, 8)),
        ([5, 6, 7], range(8, 10)),
    ]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_windows_predict_each_token_once_from_as_many_as_they_can(text, length):
    cut = rolling_windows(text, 99, length)
    assert [token for _, continuation in cut for token in continuation] == text
    whole, end = [99, *text], 0
    for context, continuation in cut:
        end += len(continuation)
        inputs = [*context, *continuation[:-1]]
        assert inputs == whole[end - len(inputs) : end]
        assert len(inputs) == min(length, end)


def test_rolling_log_likelihoods():
    rng = np.random.default_rng(5)
    texts = [tokens(rng, 40), tokens(rng, 7), []]
    found = rolling_log_likelihoods(
        SHORT, variables_of('base'), texts, prefix_id=2, batch_size=2, pad_multiple=8
    )
    first, second, third = [
        reference_score('base', context, continuation)
        for context, continuation in [
            ([2], texts[0][:16]),
            (texts[0][15:16], texts[0][16:32]),
            (texts[0][23:32], texts[0][32:]),
        ]
    ]
    expected = [
        Likelihood(first[0] + second[0] + third[0], 40, False),
        reference_score('base', [2], texts[1]),
        Likelihood(0.0, 0, True),
    ]
    check_close(found, expected)
