"""Verdicts of an LLM judge in both orders, and win rates."""

import asyncio
import json
import re

import numpy as np
import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import judge_protocol
from malora_jax.ultralink.evaluation.judge import JudgeConfig
from malora_jax.ultralink.evaluation.win_rates import win_rate
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import FakeModel, read_rows, write_rows


def run(path, say, answers=('long answer',), baselines=('short',), **options):
    ours = [{'id': str(n), 'question': f'q{n}', 'answer': a} for n, a in enumerate(answers)]
    theirs = [{'id': str(n), 'answer': answer} for n, answer in enumerate(baselines)]
    model = FakeModel(say)
    inputs = [write_rows(path / 'ours.jsonl', ours)]
    config = JudgeConfig('fr', write_rows(path / 'theirs.jsonl', theirs), **options)
    given = StageRun(config, inputs, path / 'out', model=model)
    manifest = asyncio.run(STAGES['judge'].run(given))
    return read_rows(path / 'out'), manifest.total, model.requests


def shown(request) -> tuple[str, str]:
    """Return the two answers in the order in which the judge sees them."""
    text = request.messages[-1].content
    return tuple(re.search(rf'<answer {x}>\n(.*)\n</answer', text)[1] for x in 'AB')


def longer(request) -> str:
    """Prefer the longer answer in either position."""
    first, second = map(len, shown(request))
    return '[[C]]' if first == second else '[[A]]' if first > second else '[[B]]'


def test_a_judge_that_sees_the_better_answer(tmp_path):
    found, total, requests = run(
        tmp_path, longer, ('long answer', 'x', 'same'), ('s', 'yy', 'eq==')
    )
    assert [(row['verdicts'], row['score']) for row in found] == [
        (['answer', 'answer'], 1.0),
        (['baseline', 'baseline'], 0.0),
        (['tie', 'tie'], 0.5),
    ]
    assert [shown(request) for request in requests[:2]] == [
        ('long answer', 's'),
        ('s', 'long answer'),
    ]
    assert total.counts == {'verdict depends on the order': 0}


@pytest.mark.parametrize('mark', 'AB')
def test_a_judge_that_sees_the_order_only_gives_ties(tmp_path, mark):
    found, total, _ = run(tmp_path, lambda request: f'[[{mark}]]')
    assert found[0]['score'] == 0.5 and len(set(found[0]['verdicts'])) == 2
    assert total.counts == {'verdict depends on the order': 1}


def test_a_tie_in_one_order_leaves_the_other_verdict(tmp_path):
    found, total, _ = run(
        tmp_path, lambda request: '[[A]]' if shown(request)[0] == 'long answer' else '[[C]]'
    )
    assert (found[0]['verdicts'], found[0]['score']) == (['answer', 'tie'], 1.0)
    assert total.counts == {'verdict depends on the order': 0}


def test_no_verdict_is_asked_for_again_and_then_counted(tmp_path):
    found, total, requests = run(
        tmp_path, lambda request: longer(request) if request.sample_index else 'A is better.'
    )
    assert found[0]['score'] == 1.0 and [request.sample_index for request in requests] == [
        0,
        1,
        0,
        1,
    ]
    (tmp_path / 'never').mkdir()
    found, total, _ = run(tmp_path / 'never', lambda request: Reply('[[A]]', 'length', 1))
    assert (found, total.dropped) == ([], {'no verdict': 1})


def test_refusals_are_those_of_the_order_without_a_verdict(tmp_path):
    def say(request):
        if shown(request)[0] == 'long answer':
            return Reply('too long', 'length', 1)
        return '[[B]]' if request.sample_index else 'B is better.'

    run(tmp_path, say, attempts=3)
    reject = json.loads((tmp_path / 'out' / 'rejects-00000.jsonl').read_text())
    assert (reject['text'], reject['attempts']) == ('too long', 3)
    assert reject['refusals'] == ['no verdict (finish reason length)'] * 3


def said_in_summary(path, say, answers):
    """Judge answers, and return the summary of the command."""
    rows = [{'id': str(n), 'question': f'q{n}', 'answer': a} for n, a in enumerate(answers)]
    ours = write_rows(path / 'rows.jsonl', rows)
    given = StageRun(JudgeConfig('fr', ours), [ours], path / 'out', model=FakeModel(say))
    return STAGES['judge'].summary(given, asyncio.run(STAGES['judge'].run(given)))


def test_no_verdict_at_all_shows_a_reply(tmp_path):
    with pytest.raises(UserError) as error:
        said_in_summary(tmp_path, lambda request: 'Answer A\nis better.', ['a', 'b'])
    assert str(error.value) == (
        'No question has a verdict, so there is no win rate: the first reply of the judge is '
        f"'Answer A\\nis better.' ({tmp_path}/out/rejects-00000.jsonl:1)."
    )


@pytest.mark.parametrize('missing', [1, 2])
def test_missing_verdicts_stand_next_to_the_win_rate(tmp_path, missing):
    def say(request):
        return 'None.' if 'unclear' in request.messages[-1].content else '[[C]]'

    answers = [*missing * ['unclear'], *(10 - missing) * ['a']]
    last = said_in_summary(tmp_path, say, answers).splitlines()[-1]
    assert last.startswith('Win rate 50.0%')
    note = '; without 2 of 10 questions, which have no verdict'
    assert last.endswith(note if missing == 2 else ' losses')


def test_the_last_mark_counts():
    assert judge_protocol.parse_verdict(Reply('Either [[A]] or [[B]]: [[B]]', 'stop', 1)) == -1


def test_a_question_without_a_baseline(tmp_path):
    with pytest.raises(UserError, match=r"ours.jsonl:2: .*theirs.jsonl has no answer to '1'"):
        run(tmp_path, longer, answers=('a', 'b'), baselines=('c',))


def test_a_question_with_two_baselines(tmp_path):
    row = {'id': '0', 'question': 'q', 'answer': 'a'}
    ours, theirs = (
        write_rows(tmp_path / name, rows)
        for name, rows in (('ours.jsonl', [row]), ('theirs.jsonl', [row, row]))
    )
    given = StageRun(JudgeConfig('fr', theirs), [ours], tmp_path / 'out', model=FakeModel(longer))
    with pytest.raises(UserError, match=r"theirs\.jsonl:2: an earlier row has the same id '0'"):
        asyncio.run(STAGES['judge'].run(given))


def test_the_win_rate_counts_ties_as_halves():
    found = win_rate(50 * [1.0] + 30 * [0.5] + 20 * [0.0])
    assert found.rate == pytest.approx(0.65)
    assert (found.wins, found.ties, found.losses) == (50, 30, 20)
    # The expected interval is the normal approximation with the standard deviation of the scores.
    half = 1.96 * np.std(50 * [1.0] + 30 * [0.5] + 20 * [0.0]) / 10
    assert found.low == pytest.approx(0.65 - half, abs=0.01)
    assert found.high == pytest.approx(0.65 + half, abs=0.01)
    assert found == win_rate(20 * [0.0] + 50 * [1.0] + 30 * [0.5])


def test_the_interval_holds_the_true_rate_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, inside = 0.4 + 0.5 * 0.2, 0
    for _ in range(200):
        scores = rng.choice([1.0, 0.5, 0.0], p=[0.4, 0.2, 0.4], size=200).tolist()
        found = win_rate(scores, num_resamples=500)
        inside += found.low <= truth <= found.high
    # 190 of 200 on average, with a standard deviation of 3.
    assert 178 <= inside <= 199


def test_no_scores():
    with pytest.raises(UserError, match='No question has a verdict'):
        win_rate([])


def test_questions_in_another_language_are_refused(tmp_path):
    question = '¿Cuál es el río más largo de España y por qué ciudades pasa antes de llegar al mar?'
    rows = [{'id': str(n), 'question': question, 'answer': 'a'} for n in range(2)]
    path = write_rows(tmp_path / 'rows.jsonl', rows)
    given = StageRun(JudgeConfig('fr', path), [path], tmp_path / 'out', model=FakeModel(longer))
    with pytest.raises(UserError, match=r'rows.jsonl: the questions are not in French \(fr\)'):
        asyncio.run(STAGES['judge'].run(given))
