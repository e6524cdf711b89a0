"""Parsers of the benchmarks of recent papers: parsed items, and messages about broken rows."""

import pytest

from malora_jax.data.datasets import Item, commonsense, get_dataset, instructions, math_problems
from malora_jax.data.datasets.bbh import bbh_parser
from malora_jax.data.datasets.mmlu import parse_mmlu
from tests.helpers.benchmark_rows import broken_row_message, row

SUBJECT = 'The following are multiple choice questions (with answers) about number theory.'


def test_siqa_counts_from_1_and_keeps_white_space():
    question = 'Ann gave Bob her umbrella. How would Bob feel?'
    options = ('grateful', 'thirsty ', 'old')
    assert commonsense.parse_siqa(row('siqa')) == Item(question, '', options, 0)
    assert commonsense.parse_siqa(row('siqa', label=3)).label == 2


def test_a_repeated_option_of_siqa_is_scored():
    """Five rows of the validation split have the right option twice."""
    assert commonsense.parse_siqa(row('siqa', answerC='grateful')).label == 0


def test_hellaswag_has_an_opening():
    endings = ('swims.', 'heats the oven.', 'reads a map.', 'sells a car.')
    assert commonsense.parse_hellaswag(row('hellaswag')) == Item(
        'A cook stirs the dough.', 'Baking', endings, 1, opening='the cook'
    )
    assert commonsense.parse_hellaswag(row('hellaswag', ctx_b='')).opening == ''


def test_winogrande_has_a_blank():
    item = commonsense.parse_winogrande(row('winogrande'))
    assert (item.options, item.label) == (('shelf', 'cup'), 1)


def test_aqua_has_letters_in_front_of_its_options():
    item = math_problems.parse_aqua(row('aqua'))
    assert item == Item('What is 2 + 3?', '', ('4', '5', '6', '7', '8'), 1)
    twice = ['A)A)4', 'B)B)5', 'C) (x)', 'D)D', 'E)\nE)']
    assert math_problems.parse_aqua(row('aqua', options=twice)).options == (
        *('4', '5', '(x)', 'D', 'E)'),
    )


@pytest.mark.parametrize('body', ['Ann has 9 pears', 'Ann has 9 pears.', ' Ann has 9 pears. '])
def test_svamp_is_joined_with_one_period(body):
    item = math_problems.parse_svamp(row('svamp', Body=body, Question='How many? '))
    assert item == Item('Ann has 9 pears. How many?', answers=('7.0',))


@pytest.mark.parametrize(
    'answer, number', [('7.0', '7.0'), (7, '7'), ('1,080', '1080'), (-2, '-2')]
)
def test_rows_of_llm_adapters(answer, number):
    question = ' Ann has 9 pears and eats 2. How many are left? '
    for name in ('mawps', 'addsub', 'multiarith', 'singleeq'):
        assert get_dataset(name).parse(row(name, answer=answer)) == Item(
            question, answers=(number,)
        )
    assert math_problems.parse_solved(row('math_14k')) == Item(
        question, answers=('\nA: 9 - 2 = 7. The answer is 7.',)
    )


def test_code_alpaca_has_an_input():
    assert instructions.parse_code_alpaca(row('code_alpaca')) == Item(
        'Sort the list.', '[2, 1]', answers=('[1, 2]',)
    )
    assert instructions.parse_code_alpaca(row('code_alpaca', input=None)).passage == ''


def test_mmlu_names_its_subject():
    item = parse_mmlu(row('mmlu'))
    assert item == Item('Which one is a prime number?', SUBJECT, ('4', '6', '7', '9'), 2)
    assert parse_mmlu(row('mmlu', choices=['1', '1', '1', '2'])).label == 2


def test_bbh_has_a_description():
    item = bbh_parser('date_understanding')(row('bbh'))
    assert item == Item(
        'Which is cold?\nOptions:\n(A) fire\n(B) ice',
        'Infer the date from context.',
        answers=('(B)',),
    )


@pytest.mark.parametrize(
    'parse, name, changes, message',
    [
        (
            commonsense.parse_siqa,
            'siqa',
            {'label': '0'},
            ": field 'label' is 0; it must be 1 to 3.",
        ),
        (
            commonsense.parse_siqa,
            'siqa',
            {'answerB': ' '},
            ": field 'answerB' is empty; it must be text.",
        ),
        (
            commonsense.parse_winogrande,
            'winogrande',
            {'answer': ''},
            ": field 'answer' is empty (the test split has no labels).",
        ),
        (
            commonsense.parse_winogrande,
            'winogrande',
            {'sentence': 'The cup broke.'},
            ": field 'sentence' has no blank '_'.",
        ),
        (
            commonsense.parse_hellaswag,
            'hellaswag',
            {'endings': 'swims.'},
            ": field 'endings' is 'swims.'; it must be a list of texts.",
        ),
        (
            commonsense.parse_hellaswag,
            'hellaswag',
            {'label': 4},
            ": field 'label' is 4; it must be 0 to 3 (the test split has no labels).",
        ),
        (
            math_problems.parse_aqua,
            'aqua',
            {'options': ['A)4', '5']},
            ": an option is '5'; it must begin with 'B)' and a text must follow.",
        ),
        (
            math_problems.parse_aqua,
            'aqua',
            {'correct': 'F'},
            ": field 'correct' is 'F'; it must be the letter of an option.",
        ),
        (
            math_problems.parse_svamp,
            'svamp',
            {'Answer': 'seven'},
            ": field 'Answer' is 'seven'; it must be a number.",
        ),
        (
            math_problems.parse_numbered,
            'mawps',
            {'answer': True},
            ": field 'answer' is True; it must be a number.",
        ),
        (
            math_problems.parse_solved,
            'math_14k',
            {'output': ''},
            ": field 'output' is empty; it must be text.",
        ),
        (parse_mmlu, 'mmlu', {'choices': ['1', '2']}, ' has 2 choices; there must be 4.'),
        (
            parse_mmlu,
            'mmlu',
            {'choices': ['1', None, '2', '3']},
            ": entry 2 of 'choices' is missing (null); it must be text.",
        ),
        (
            bbh_parser('snarks'),
            'bbh',
            {'target': None},
            ": field 'target' is missing (null); it must be text.",
        ),
    ],
)
def test_a_broken_row(parse, name, changes, message):
    assert broken_row_message(parse, row(name, **changes)) == message
