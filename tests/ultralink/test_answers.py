"""Answers of a model to files of questions."""

import asyncio

from malora_jax.ultralink.evaluation.answers import AnswersConfig
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import FakeModel, read_rows


def run(tmp_path, say, questions='Qui ?\nOù ?\n'):
    path = tmp_path / 'questions.txt'
    path.write_text(questions, 'utf-8')
    model = FakeModel(say)
    given = StageRun(AnswersConfig(), [path], tmp_path / 'out', model=model)
    manifest = asyncio.run(STAGES['answers'].run(given))
    return read_rows(tmp_path / 'out'), manifest.total, model.requests


def test_the_prompt_is_the_question(tmp_path):
    found, total, requests = run(tmp_path, lambda request: request.messages[-1].content.upper())
    assert found == [
        {'id': 'questions-1', 'question': 'Qui ?', 'answer': 'QUI ?'},
        {'id': 'questions-2', 'question': 'Où ?', 'answer': 'OÙ ?'},
    ]
    assert [[(each.role, each.content) for each in request.messages] for request in requests] == [
        [('user', 'Qui ?')],
        [('user', 'Où ?')],
    ]
    assert total.counts == {'empty': 0, 'truncated': 0}


def test_empty_and_truncated_answers_are_kept_and_counted(tmp_path):
    replies = {'Qui ?': Reply('', 'stop', 1), 'Où ?': Reply('Ici', 'length', 9)}
    found, total, requests = run(tmp_path, lambda request: replies[request.messages[0].content])
    assert [row['answer'] for row in found] == ['', 'Ici'] and len(requests) == 2
    assert total.counts == {'empty': 1, 'truncated': 1}


def test_a_reply_without_an_answer_is_requested_again(tmp_path):
    def say(request):
        return 'Moi.' if request.sample_index == 2 else Reply('', 'malformed', 1)

    found, _, requests = run(tmp_path, say, 'Qui ?\n')
    assert [row['answer'] for row in found] == ['Moi.'] and len(requests) == 3


def test_no_answer_in_any_attempt(tmp_path):
    found, total, requests = run(tmp_path, lambda request: Reply('', 'refused', 1))
    assert (found, total.dropped, len(requests)) == ([], {'no answer': 2}, 6)
