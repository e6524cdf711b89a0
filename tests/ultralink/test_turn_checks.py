"""Checks of questions and answers: handwritten ones pass, and faults are detected."""

import itertools

import pytest

from malora_jax.ultralink import prompts
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.text.shingles import similarity
from malora_jax.ultralink.turn_checks import answer_fault, question_fault
from tests.helpers.openai_stub import texts

ALL = [(code, kind) for code in LANGUAGES for kind in ('questions', 'answers')]


def of_question(text, code, earlier=(), reason='stop'):
    return question_fault(
        Reply(text, reason, 1),
        code,
        prompts.load(code),
        earlier,
        min_characters=6,
        max_characters=300,
        max_similarity=0.6,
    )


def of_answer(text, code, reason='stop'):
    return answer_fault(Reply(text, reason, 1), code, prompts.load(code), min_characters=10)


@pytest.mark.parametrize('code, kind', ALL)
def test_what_was_written_passes(code, kind):
    fault_of = of_question if kind == 'questions' else of_answer
    assert {
        text: fault_of(text, code) for text in texts()[code][kind] if fault_of(text, code)
    } == {}


@pytest.mark.parametrize('code', LANGUAGES)
def test_what_speaks_of_the_text(code):
    speaks = texts()[code]['speaks']
    assert {text: of_question(text, code) for text in speaks} == dict.fromkeys(
        speaks, 'speaks of the text'
    )
    for answer in texts()[code]['answers']:
        assert of_answer(f'{texts()[code]["cites"]} {answer}', code) == 'speaks of the text'


@pytest.mark.parametrize('code', LANGUAGES)
def test_what_does_not_stand_alone(code):
    dangling = texts()[code]['dangling']
    assert {text: of_question(text, code) for text in dangling} == dict.fromkeys(
        dangling, 'not self-contained'
    )


@pytest.mark.parametrize('code, kind', ALL)
def test_another_language(code, kind):
    fault_of = of_question if kind == 'questions' else of_answer
    for other in LANGUAGES:
        if other != code:
            assert {fault_of(text, code) for text in texts()[other][kind]} == {'language'}


@pytest.mark.parametrize(
    'text',
    [
        'Why was the Erie Canal dug? Who dug it?',
        '1. Why was the Erie Canal dug?',
        '- Why was the Erie Canal dug?',
        'Tell me about the Erie Canal.',
        'Here is a question:\nWhy was the Erie Canal dug?',
        'Why was the Erie Canal dug? It carried grain.',
    ],
)
def test_what_is_not_one_question(text):
    assert of_question(text, 'en') == 'not one question'


def test_lengths_and_reasons_to_finish():
    question = texts()['en']['questions'][0]
    assert of_question('Why?', 'en') == 'length'
    assert of_question(question * 9, 'en') == 'length'
    assert of_answer('Because.', 'en') == 'short'
    for fault_of in (of_question, of_answer):
        assert fault_of(question, 'en', reason='length') == 'truncated'
        assert fault_of('', 'en', reason='malformed') == 'malformed'
        assert fault_of('', 'en', reason='refused') == 'refused'


@pytest.mark.parametrize('code', LANGUAGES)
def test_a_question_that_was_asked_before(code):
    questions = texts()[code]['questions']
    for one, two in itertools.combinations(questions, 2):
        assert of_question(one, code, [two]) == ''
    for question in questions:
        # The same question in other case and punctuation.
        has_words = LANGUAGES[code].word_spaces
        again = f'  {question.upper() if has_words else question[:-1] + " ？"}'.strip()
        assert of_question(question, code, ['x', again]) == 'asked before'


def test_similarity_against_counts_by_hand():
    # abc bcd cde against abc bcd bce: 2 of 4.
    assert similarity('Ab-c, d e', 'ABCD') == 2 / 3
    assert similarity('abcde', 'abcdf') == 2 / 4
    assert similarity('ab', 'ab') == 1.0
    assert similarity('?', '') == 1.0
    assert similarity('abc', 'xyz') == 0.0
