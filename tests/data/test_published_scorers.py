"""Extraction of answers by the rules of published evaluations, with their flaws."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data import Example
from malora_jax.data.published_scorers import (
    bbh_letter_match,
    bbh_match,
    first_capital_match,
    first_choice_match,
    last_number_match,
)


def example(answer: str) -> Example:
    return Example('?', answer, {'answers': (answer,)})


@pytest.mark.parametrize(
    'right, reply, score',
    [
        ('answer3', 'the correct answer is answer3', 1),
        ('answer3', 'the correct answer is answer3, not answer1', 1),
        ('answer3', 'not answer1 but answer3', 0),
        ('answer3', 'answer5 or answer3', 0),
        ('answer1', 'answer12', 1),
        ('answer3', 'Answer3', 0),
        ('answer3', 'the correct answer is 3', 0),
        ('true', 'the correct answer is true', 1),
        ('false', 'untrue', 0),
        ('solution2', 'solution3 solution2', 1),
        ('ending4', 'ending4', 1),
        ('option1', '', 0),
    ],
)
def test_the_first_choice_counts(right, reply, score):
    assert first_choice_match(reply, example(f' the correct answer is {right}')) == score


PUBLISHED_CHOICES = {
    'true': r'true|false',
    'solution': r'solution1|solution2',
    'answer': r'answer1|answer2|answer3|answer4|answer5',
    'ending': r'ending1|ending2|ending3|ending4',
    'option': r'option1|option2',
}


@given(
    st.sampled_from([*PUBLISHED_CHOICES]),
    st.lists(
        st.sampled_from(['answer', 'option', 'ending', 'solution', 'true', ' ', *'123456'])
    ).map(''.join),
)
def test_choices_are_found_as_in_the_published_evaluation(kind, reply):
    found = re.findall(PUBLISHED_CHOICES[kind], reply.strip())
    right = found[0] if found else PUBLISHED_CHOICES[kind].split('|')[0]
    assert first_choice_match(reply, example(f' the correct answer is {right}')) == bool(found)


@pytest.mark.parametrize(
    'right, reply, score',
    [
        ('576.0', 'So he needs 24 * 24 = 576 tiles. The answer is 576.', 1),
        ('576.0', 'The answer is 576. I used 24 tiles.', 0),
        ('1080', 'It is $1,080', 1),
        ('#### 1,006', 'It is 1006.0009', 1),
        ('7', '7.0011', 0),
        ('-3', 'from 10-3', 1),
        ('1.8333333333333335', '1.833', 1),
        ('7', 'seven', 0),
    ],
)
def test_the_last_number_counts(right, reply, score):
    assert last_number_match(reply, example(right)) == score


@pytest.mark.parametrize(
    'right, reply, score',
    [
        ('D', '\nRationale: it is 3. The answer is (D).', 1),
        ('D', 'Answer: (D)', 0),
        ('A', 'Answer: (D)', 1),
        ('E', 'none', 0),
    ],
)
def test_the_first_capital_counts(right, reply, score):
    assert first_capital_match(reply, example(f' The answer is ({right}).')) == score


@pytest.mark.parametrize(
    'right, reply, whole, letter',
    [
        ('(B)', ' (b).', 1, 0),
        ('(B)', 'The answer is (B).', 0, 1),
        ('(B)', '(A) or (B)', 0, 0),
        ('True', 'true', 1, 1),
        ('a b c', 'a, b, c', 1, 1),
        ('] )', '] ).', 1, 1),
        ('24', 'It is 24', 0, 0),
    ],
)
def test_bbh(right, reply, whole, letter):
    assert bbh_match(reply, example(f' {right}')) == whole
    assert bbh_letter_match(reply, example(f' {right}')) == letter
