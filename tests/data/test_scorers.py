import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from malora_jax.data.scorers import SCORERS, label_match, letter_match, number_match, rouge_l
from malora_jax.data.tasks import Example


def example(answer: str, **metadata) -> Example:
    return Example('?', answer, metadata)


@pytest.mark.parametrize(
    'name, prediction, answer, score',
    [
        ('exact_match', ' B\n', 'B', 1.0),
        ('exact_match', 'b', 'B', 0.0),
        ('exact_match', 'B.', 'B', 0.0),
        ('choice', '(b) wet palms', 'B', 1.0),
        ('choice', 'B', 'B. wet palms', 1.0),
        ('choice', 'Yes, because', 'yes', 1.0),
        ('choice', '**Ägypten**', 'ägypten', 1.0),
        ('choice', '_1_', '1', 1.0),
        ('choice', 'The answer is B', 'B', 0.0),
        ('choice', 'Banana', 'B', 0.0),
        ('choice', '', 'B', 0.0),
        ('choice', '?', '!', 0.0),
        ('choice', 'हिन्दी', 'हाँ', 0.0),
        ('choice', 'हाँ, क्योंकि', 'हाँ', 1.0),
        ('choice', 'ไม่ใช่', 'ไม้', 0.0),
        ('number', '9 * 2 = 18', 'So 9 * 2 = <<9*2=18>>18.\n#### 18', 1.0),
        ('number', 'The answer is: $1,234.00', ' 1234', 1.0),
        ('number', '18 or 19', '18', 0.0),
        ('number', 'none', '18', 0.0),
        ('number', 'none', 'none', 0.0),
        ('letter', 'The answer is (B) wet palms', ' (B)', 1.0),
        ('letter', 'wet palms', ' wet palms', 0.0),
        ('letter', '(C)', '(B)', 0.0),
        ('rouge_l', 'the cat sat', 'the cat sat', 1.0),
    ],
)
def test_scores(name, prediction, answer, score):
    assert SCORERS[name](prediction, example(answer)) == score


@pytest.mark.parametrize('scorer', [number_match, letter_match, rouge_l])
def test_any_of_several_answers_is_right(scorer):
    several = example('(A) 1 dog', answers=('(A) 1 dog', '(B) 2 cats'))
    assert [scorer(said, several) for said in ('(A) 1 dog', '(B) 2 cats')] == [1.0, 1.0]
    assert scorer('(C) 3', several) < 1.0


def test_numbers_in_a_language():
    assert number_match('Son 1.234,5 $', example('1234.5', language='es')) == 1.0
    assert number_match('Son 1.234,5 $', example('1234.5')) == 0.0


@pytest.mark.parametrize(
    'prediction, said',
    [
        ('(B)', 'B'),
        (' (b) wet palms', 'B'),
        ('**(B)**', 'B'),
        ('I would say (B)', 'B'),
        ('(A) is wrong, (B) is right', 'A'),
        ('B', 'B'),
        ('B.', 'B'),
        ('B) wet palms', 'B'),
        ('B wet palms', 'B'),
        ('B because (A) is wrong', 'B'),
        ('Answer: B', 'B'),
        ('Answer:\n\nA\nbecause', 'A'),
        ('The answer is: **A**', 'A'),
        ('The answer is A because', 'A'),
        ('The correct choice is option A, as', 'A'),
        ('So choice A because', 'A'),
        ('A', 'A'),
        ('A.', 'A'),
        ('A: wet palms', 'A'),
        ('A - wet palms', 'A'),
        # The article, the pronoun, and letters inside words.
        ('A dog is (B)', 'B'),
        ('A dog', None),
        ('Answer: A dog', None),
        ('A-frame', None),
        ('I think so', None),
        ("I'm not sure", None),
        ("B's dog", None),
        ('Banana', None),
        ('The answer is a dog', None),
        ('The answer is Banana', None),
        ('The answerS', None),
        ('dog(s)', None),
        ('Give it vitamin C', None),
        ('b', None),
        ('', None),
    ],
)
def test_the_letter_of_an_option(prediction, said):
    scores = {right: letter_match(prediction, example(f'({right})')) for right in 'ABCDIS'}
    assert scores == {right: float(right == said) for right in 'ABCDIS'}


@pytest.mark.parametrize(
    'prediction, said',
    [
        (' neutral', ' neutral'),
        ('Neutral.', ' neutral'),
        ('It is **positive**, not negative', ' positive'),
        ('Not negative but neutral', ' negative'),
        ('Very positive', ' very positive'),
        ('positive, very', ' positive'),
        ('positively negative', ' negative'),
        ('non_neutral', None),
        ('good', None),
        ('', None),
    ],
)
def test_the_first_label(prediction, said):
    options = (' positive', ' very positive', ' neutral', ' negative')
    scores = {right: label_match(prediction, example(right, options=options)) for right in options}
    assert scores == {right: float(right == said) for right in options}


@pytest.mark.parametrize('options', [('true', 'true in part'), ('true in part', 'true')])
def test_the_longer_of_two_labels_at_one_place(options):
    assert label_match('True in part.', example('true in part', options=options)) == 1.0
    assert label_match('True.', example('true', options=options)) == 1.0


@pytest.mark.parametrize(
    'prediction, answers, score',
    [
        # Of 3 words, 2 are in order in a reference of 4: F1 of precision 2/3 and recall 2/4.
        ('The cat slept.', ('the cat sat down',), 4 / 7),
        ('cat the sat', ('the cat sat',), 2 / 3),
        # The score is the largest F1 of a reference; it does not mix precision and recall of
        # different ones.
        ('a b c d', ('a b', 'a b c d e f g h'), 2 / 3),
        ('dogs', ('dog',), 0.0),
        ('', ('dog',), 0.0),
        # Words in any alphabet, and single characters in Chinese.
        ('Кошка спит.', ('кошка сидит',), 1 / 2),
        ('猫坐在垫子上。', ('猫在垫子下。',), 8 / 11),
    ],
)
def test_rouge_l(prediction, answers, score):
    assert rouge_l(prediction, example(answers[0], answers=answers)) == pytest.approx(score)


@given(*2 * [st.text(st.characters(max_codepoint=127), max_size=30)])
def test_rouge_of_english_is_the_package_s_own(prediction, answer):
    theirs = rouge_scorer.RougeScorer(['rougeL']).score(answer, prediction)['rougeL'].fmeasure
    assert rouge_l(prediction, example(answer)) == pytest.approx(theirs)


def test_rouge_is_only_imported_when_it_is_needed_and_says_nothing():
    code = (
        'import sys, logging\n'
        'from malora_jax.data.scorers import SCORERS\n'
        'from malora_jax.data.tasks import Example\n'
        "assert 'nltk' not in sys.modules\n"
        'from absl import logging\n'
        'logging.set_verbosity(logging.INFO)\n'
        "assert SCORERS['rouge_l']('a', Example('?', 'a', {})) == 1.0\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('', '')
