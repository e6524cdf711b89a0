"""MGSM: questions with a numeric answer, and worked examples in eleven languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data.datasets import Item
from malora_jax.data.datasets.mgsm import HEADINGS, parse_mgsm, read_mgsm
from malora_jax.data.file_rows import Row
from tests.helpers.benchmark_rows import broken_row_message, row


@pytest.mark.parametrize('number', [1000, '1000', '1,000'])
def test_a_question_has_a_number(number):
    assert parse_mgsm(row('mgsm_en', answer_number=number)) == Item(
        'A robe takes 2 bolts of 500 ells. How many ells is that?', answers=('1000',)
    )


def test_a_worked_example_loses_its_words():
    """Only the labels at the start are removed: the answer also contains a full-width colon."""
    assert parse_mgsm(row('mgsm_zh')) == Item(
        '一包有 3 个梨。两包有多少个？', answers=('2 * 3 = 6。答案是：6。',)
    )


@given(st.sampled_from(sorted(HEADINGS)), st.text('ab:：?', min_size=1).filter(str.strip))
def test_words_of_every_language_are_taken_off(language, text):
    words = HEADINGS[language]
    fields = dict(question=f'{words.question} {text}', answer=words.answer + text, answer_number=1)
    assert parse_mgsm(Row('a', fields)) == Item(text, answers=(text,))


def test_an_original_file_has_no_header(tmp_path):
    path = tmp_path / 'mgsm_es.tsv'
    path.write_text('"La ""A"" cuesta $2,50. ¿Cuánto?"\t2,125\n¿Y la B?\t3\n', 'utf-8')
    assert [row.fields for row in read_mgsm(path)] == [
        {'question': 'La "A" cuesta $2,50. ¿Cuánto?', 'answer_number': '2,125'},
        {'question': '¿Y la B?', 'answer_number': '3'},
    ]
    assert [parse_mgsm(row).answers for row in read_mgsm(path)] == [('2125',), ('3',)]


def test_another_file_has_columns(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"question": "Why?", "answer_number": 4}', 'utf-8')
    assert [parse_mgsm(row) for row in read_mgsm(path)] == [Item('Why?', answers=('4',))]


@pytest.mark.parametrize(
    'name, changes, message',
    [
        (
            'mgsm_en',
            {'answer_number': '1,00'},
            ": field 'answer_number' is '1,00'; it must be a whole number.",
        ),
        ('mgsm_en', {'answer_number': ...}, " has no field 'answer_number'; it has 'question'"),
        ('mgsm_en', {'question': ''}, ": field 'question' is empty; it must be text."),
        (
            'mgsm_zh',
            {'answer': '2 * 3 = 6。'},
            ": field 'answer' must begin with a word and a colon, such as 'Question:'.",
        ),
        ('mgsm_zh', {'answer': 6}, ": field 'answer' is 6; it must be text."),
    ],
)
def test_a_broken_row(name, changes, message):
    assert broken_row_message(parse_mgsm, row(name, **changes)).startswith(message)
