"""The stage `dialogues`: turns, their end, and the effects of a failing endpoint."""

import asyncio
import collections
import dataclasses
import sqlite3

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import prompts, turn_checks
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.openai_stub import FailurePlan, document, serve_stub, texts
from tests.ultralink.helpers import FakeModel, WordCounter, contents, read_rows, write_rows

PROMPTS = prompts.load('en')


def stage_of(request):
    user = request.messages[1].content
    [stage] = [name for name, text in PROMPTS.requirements.items() if f'\n\n{text}\n\n' in user]
    return stage


def kind_of(request):
    return 'answers' if stage_of(request).endswith('answer') else 'questions'


def in_turn(request):
    """Return a different question or answer each time, by the number of earlier answers."""
    of_kind = texts()['en'][kind_of(request)]
    said = request.messages[1].content.count(PROMPTS.answer_label)
    return of_kind[(said + request.sample_index) % len(of_kind)]


def segments(path, count, languages=('en',)):
    rows = []
    for number in range(count):
        language = languages[number % len(languages)]
        row = document(language, number, lines=4)
        rows.append({**row, 'id': f'{language}-{number}-0', 'language': language})
    return write_rows(path, rows)


def dialogues(config, model, source, output, **how):
    given = StageRun(config, [source], output, model=model, token_counter=WordCounter(), **how)
    return STAGES['dialogues'].run(given)


def run(path, say, count=1, **how):
    config = DialoguesConfig(**how.pop('config', {}))
    model = say if isinstance(say, FakeModel) else FakeModel(say)
    source = segments(path / 'in.jsonl', count)
    made = dialogues(config, model, source, path / 'out', concurrency=4, **how)
    return asyncio.run(made), read_rows(path / 'out'), model.requests


def test_the_numbers_are_the_papers():
    first_five = dataclasses.astuple(DialoguesConfig())[:5]
    assert first_five == (0.1, 2.0, 0.5, 4070, 10)


def test_a_dialogue_from_its_segment(tmp_path):
    _, [row], requests = run(tmp_path, in_turn)
    source = document('en', 0, lines=4)
    assert row['id'] == 'en-0-0'
    assert (row['language'], row['title'], row['document']) == (
        'en',
        source['title'],
        source['text'],
    )
    turns = len(row['kinds'])
    assert row['data'][::2] == texts()['en']['questions'][:turns]
    assert row['data'][1::2] == texts()['en']['answers'][:turns]
    assert row['kinds'][0] == 'initial' and set(row['kinds'][1:]) <= {'in_depth', 'expansive'}
    stages = [stage_of(request) for request in requests]
    assert stages[:2] == ['initial_question', 'initial_answer']
    assert stages[2:] == [
        stage for kind in row['kinds'][1:] for stage in (f'{kind}_question', 'following_answer')
    ]
    last = requests[-1].messages[1].content
    assert all(text in last for text in row['data'][:-1])
    assert f'<document>\n{source["text"]}\n</document>' in last
    assert {request.sampling.max_tokens for request in requests} == {256, 1024}


def test_lengths_are_those_of_the_papers_rule(tmp_path, monkeypatch):
    """The lengths have the distribution computed by hand: 0.1, 0.9 · 0.2, and so on."""
    monkeypatch.setattr(turn_checks, 'identify_language', lambda text: 'en')  # It is slow.
    found, rows, _ = run(tmp_path, in_turn, 1000, config={'context_tokens': 10**6})
    lengths = collections.Counter(len(row['kinds']) for row in rows)
    expected = {2: 0.1, 3: 0.18, 4: 0.288, 5: 0.3456, 6: 0.0864}
    assert set(lengths) == set(expected)
    for length, share in expected.items():
        deviation = (share * (1 - share) / 1000) ** 0.5
        assert abs(lengths[length] / 1000 - share) < 4 * deviation
    mean = sum(lengths[n] * n for n in lengths) / 1000
    assert abs(mean - 4.14) < 0.15
    kinds = collections.Counter(kind for row in rows for kind in row['kinds'][1:])
    assert abs(kinds['in_depth'] / kinds.total() - 0.5) < 4 * 0.5 / kinds.total() ** 0.5
    assert found.total.counts == {
        'ended: stopped': 1000,
        'turns': sum(lengths[n] * n for n in lengths),
    }


def test_a_full_context_ends_a_dialogue(tmp_path):
    long = ' '.join(texts()['en']['answers'])
    say = lambda request: long if kind_of(request) == 'answers' else in_turn(request)  # noqa: E731
    words, length = WordCounter()(document('en', 0, lines=4)['text']), WordCounter()(long)
    config = {'context_tokens': words + 2 * length, 'stop_probability': 0.0}
    found, [row], _ = run(tmp_path, say, config=config)
    assert len(row['kinds']) == 2
    assert found.total.counts == {'ended: context full': 1, 'turns': 2}


def test_a_document_that_fills_the_context_is_dropped(tmp_path):
    found, rows, requests = run(tmp_path, in_turn, config={'context_tokens': 5})
    assert (found.total.dropped, rows, requests) == ({'context full': 1}, [], [])


def test_an_empty_segment_is_dropped_before_anything_is_asked(tmp_path):
    empty = {'id': 'en-0-0', 'language': 'en', 'title': 'Nothing', 'text': ' \n'}
    source = write_rows(tmp_path / 'empty.jsonl', [empty])
    model = FakeModel(in_turn)
    making = dialogues(DialoguesConfig(), model, source, tmp_path / 'out')
    assert asyncio.run(making).total.dropped == {'empty': 1} and model.requests == []


def test_a_short_answer_ends_a_dialogue_and_drops_it_if_it_is_the_first(tmp_path):
    def say(request):
        return 'No more.' if stage_of(request) == 'following_answer' else in_turn(request)

    found, [row], requests = run(tmp_path, say)
    assert row['kinds'] == ['initial'] and len(row['data']) == 2
    assert found.total.counts == {'ended: answer: short': 1, 'turns': 1}
    assert len(requests) == 4  # It is not requested again.
    (tmp_path / 'first').mkdir()
    found, rows, requests = run(
        tmp_path / 'first', lambda r: 'No.' if kind_of(r) == 'answers' else in_turn(r)
    )
    assert (found.total.dropped, rows, len(requests)) == ({'answer: short': 1}, [], 2)


FAULTS = {
    'language': lambda kind: texts()['fr'][kind][0],
    'truncated': lambda kind: Reply(texts()['en'][kind][0], 'length', 1),
    'malformed': lambda kind: Reply('', 'malformed', 0),
    'refused': lambda kind: Reply('', 'refused', 0),
    'speaks of the text': lambda kind: 'According to the text, ' + texts()['en'][kind][0],
}


@pytest.mark.parametrize('reason', FAULTS)
@pytest.mark.parametrize('kind', ['questions', 'answers'])
def test_a_fault_is_tried_again_and_counted(tmp_path, reason, kind):
    def once(request):
        spoilt = kind_of(request) == kind and request.sample_index == 0
        return FAULTS[reason](kind) if spoilt else in_turn(request)

    found, [row], requests = run(tmp_path, once)
    turns = len(row['kinds'])
    assert found.total.counts == {
        'ended: stopped': 1,
        f'fault in {kind[:-1]}: {reason}': turns,
        'turns': turns,
    }
    assert len(requests) == 3 * turns
    # The dialogue's random choices are the same as without the fault.
    (tmp_path / 'clean').mkdir()
    _, [clean], _ = run(tmp_path / 'clean', in_turn)
    assert clean['kinds'] == row['kinds']


@pytest.mark.parametrize('reason', FAULTS)
@pytest.mark.parametrize('kind', ['questions', 'answers'])
def test_a_fault_that_stays_ends_the_dialogue_at_its_last_good_turn(tmp_path, reason, kind):
    def later(request):
        spoilt = kind_of(request) == kind and not stage_of(request).startswith('initial')
        return FAULTS[reason](kind) if spoilt else in_turn(request)

    found, [row], requests = run(tmp_path, later)
    assert row['kinds'] == ['initial']
    fault = f'{kind[:-1]}: {reason}'
    assert found.total.counts == {f'ended: {fault}': 1, f'fault in {fault}': 3, 'turns': 1}
    assert [r.sample_index for r in requests[-3:]] == [0, 1, 2]
    (tmp_path / 'first').mkdir()
    found, rows, _ = run(
        tmp_path / 'first', lambda r: FAULTS[reason](kind) if kind_of(r) == kind else in_turn(r)
    )
    assert (found.total.dropped, found.total.counts, rows) == (
        {fault: 1},
        {f'fault in {fault}': 3},
        [],
    )


def test_a_question_that_was_asked_before_is_tried_again(tmp_path):
    def say(request):
        same = kind_of(request) == 'questions' and request.sample_index < 2
        return texts()['en']['questions'][0] if same else in_turn(request)

    found, [row], _ = run(tmp_path, say)
    assert len(set(row['data'][::2])) == len(row['kinds'])
    assert found.total.counts['fault in question: asked before'] == 2 * (len(row['kinds']) - 1)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'stop_probability': 1.5}, 'dialogues.stop_probability is 1.5; it must be from 0 to 1.'),
        ({'stop_growth': 0.5}, 'dialogues.stop_growth is 0.5'),
        ({'attempts': 0}, 'dialogues.attempts is 0'),
        ({'max_question_characters': 5}, 'dialogues.max_question_characters is 5'),
        ({'temperature': -1.0}, 'dialogues.temperature is -1.0'),
        ({'answer_tokens': 0}, 'dialogues.answer_tokens is 0'),
        ({'top_p': 'x'}, "dialogues.top_p is 'x'"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError) as error:
        DialoguesConfig(**changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'language': 'xx'}, ": Unknown language 'xx'"),
        ({'language': None}, " has no 'language': run `documents` first"),
        ({'text': None}, " has no 'text'."),
    ],
)
def test_a_row_that_is_no_segment(tmp_path, change, message):
    row = {'id': 'a', 'language': 'en', 'title': 't', 'text': 'x'} | change
    source = write_rows(tmp_path / 'in.jsonl', [row])
    made = dialogues(DialoguesConfig(), FakeModel(in_turn), source, tmp_path / 'out')
    with pytest.raises(UserError) as error:
        asyncio.run(made)
    assert str(error.value).startswith(f'{source}:1{message}')


# Tests with the stub endpoint.

RATES = {
    'rate_limit': 0.08,
    'error': 0.05,
    'timeout': 0.01,
    'truncated': 0.06,
    'wrong_language': 0.06,
    'cites': 0.04,
    'malformed': 0.02,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    monkeypatch.setattr('openai._base_client.INITIAL_RETRY_DELAY', 0.01)
    identify_language('Its model is loaded here, which takes longer than requests may.')


def through(address, source, output, cache, concurrency=16, **choice):
    async def main():
        how = ModelChoice('m', cache, concurrency, address, timeout_s=3.0, **choice)
        async with open_model(how) as model:
            return await dialogues(
                DialoguesConfig(),
                model,
                source,
                output,
                concurrency=concurrency,
                shard_items=10,
            )

    return asyncio.run(main())


def replies(cache):
    with sqlite3.connect(cache) as connection:
        [[count]] = connection.execute('SELECT COUNT(*) FROM replies').fetchall()
    return count


def test_five_languages_through_an_endpoint_that_fails(tmp_path):
    source = segments(tmp_path / 'in.jsonl', 60, tuple(LANGUAGES))
    cache = tmp_path / 'c.sqlite'
    with serve_stub(FailurePlan(RATES, hang_s=6.0)) as stub:
        found = through(stub.address, source, tmp_path / 'out', cache)
    rows = read_rows(tmp_path / 'out')
    # Nothing is lost or duplicated.
    ids = [f'{list(LANGUAGES)[i % len(LANGUAGES)]}-{i}-0' for i in range(60)]
    made = [row['id'] for row in rows]
    assert made == [i for i in ids if i in made] and len(set(made)) == len(made)
    assert found.total.items == 60 == len(rows) + sum(found.total.dropped.values())
    # Every request was answered once, and that answer is cached.
    assert set(stub.answer_counts.values()) == {1}
    assert replies(cache) == len(stub.answer_counts) == len(stub.attempt_counts)
    assert all(stub.failure_counts[name] for name in RATES)
    failures = sum(stub.failure_counts[name] for name in ('rate_limit', 'error', 'timeout'))
    assert sum(stub.attempt_counts.values()) == len(stub.answer_counts) + failures
    # Every fault was counted under its name.
    counts = collections.Counter()
    for name, number in found.total.counts.items():
        if name.startswith('fault in '):
            counts[name.rpartition(': ')[2]] += number
    expected = {
        'truncated': 'truncated',
        'malformed': 'malformed',
        'language': 'wrong_language',
        'speaks of the text': 'cites',
    }
    assert {reason: counts[reason] for reason in expected} == {
        reason: stub.failure_counts[name] for reason, name in expected.items()
    }
    # No kept turn has a fault.
    for row in rows:
        questions, answers = (
            texts()[row['language']]['questions'],
            texts()[row['language']]['answers'],
        )
        assert set(row['data'][::2]) <= set(questions) and set(row['data'][1::2]) <= set(answers)
        assert len(row['data']) == 2 * len(row['kinds']) <= 12


def test_the_same_bytes_whatever_fails_and_in_whatever_order(tmp_path):
    source = segments(tmp_path / 'in.jsonl', 25, tuple(LANGUAGES))
    content = {name: rate for name, rate in RATES.items() if name in ('truncated', 'cites')}
    failing = {**RATES, **{name: 0.0 for name in RATES if name not in content}, **content}
    plans = [
        FailurePlan(content),
        FailurePlan({**failing, 'rate_limit': 0.2, 'error': 0.1}, latency_s=0.02),
    ]
    for number, plan in enumerate(plans):
        with serve_stub(plan) as stub:
            output, cache = tmp_path / f'out{number}', tmp_path / f'{number}.sqlite'
            through(stub.address, source, output, cache, concurrency=(1, 16)[number])
    assert contents(tmp_path / 'out0') == contents(tmp_path / 'out1')


def test_a_limit_of_tokens_stops_in_one_line_and_keeps_what_is_done(tmp_path):
    source = segments(tmp_path / 'in.jsonl', 25, tuple(LANGUAGES))
    with serve_stub() as stub:
        through(stub.address, source, tmp_path / 'free', tmp_path / 'free.sqlite')
        needed = set(stub.attempt_counts)
    with serve_stub() as stub:
        run_limited = lambda limit: through(  # noqa: E731
            stub.address, source, tmp_path / 'out', tmp_path / 'c.sqlite', token_limit=limit
        )
        for limit in (50_000, 90_000):
            with pytest.raises(UserError) as error:
                run_limited(limit)
            assert str(error.value).startswith('The next request might exceed --token-limit=')
            with sqlite3.connect(tmp_path / 'c.sqlite') as connection:
                [[spent]] = connection.execute('SELECT SUM(tokens) FROM replies').fetchall()
            assert limit - 10_000 < spent <= limit
        run_limited(0)
    assert stub.attempt_counts == dict.fromkeys(needed, 1)
    assert contents(tmp_path / 'out') == contents(tmp_path / 'free')


def test_another_seed_is_another_output(tmp_path):
    (tmp_path / 'other').mkdir()
    _, rows, requests = run(tmp_path, in_turn, 20)
    _, others, other_requests = run(tmp_path / 'other', in_turn, 20, seed=1)
    assert [row['kinds'] for row in rows] != [row['kinds'] for row in others]
    assert requests[0].sampling_seed != other_requests[0].sampling_seed
    with pytest.raises(UserError, match='was made with seed = 0, not 2'):
        run(tmp_path, in_turn, 20, seed=2)
