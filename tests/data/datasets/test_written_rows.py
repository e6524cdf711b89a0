"""Parsers of free-text rows: instructions, worked solutions, programs, descriptions."""

import pytest

from malora_jax.data.datasets import Item, free_form, instructions
from tests.helpers.benchmark_rows import ROWS, broken_row_message, row

OSS = instructions.pair_parser('problem', 'solution')


def test_a_pair():
    assert OSS(row('magicoder_oss')) == Item('Print 2.', answers=('print(2)',))


def test_an_input_follows_its_instruction():
    assert instructions.parse_alpaca(row('alpaca_gpt4')) == Item(
        'Translate into German.\nhouse', answers=('Haus',)
    )


@pytest.mark.parametrize('value', ['', ' \n', None, ...])
def test_an_instruction_without_input(value):
    assert (
        instructions.parse_alpaca(row('alpaca_gpt4', input=value)).question
        == 'Translate into German.'
    )


def test_a_worked_solution_stays_as_it_is():
    solved = ROWS['gsm8k']['answer']
    assert free_form.parse_gsm8k(row('gsm8k')) == Item(
        'How many pears are there?', answers=(solved,)
    )


@pytest.mark.parametrize('ending', ['#### 7', '#### -3', '#### 0.5', '#### 1,080', '####7'])
def test_numbers_that_end_a_worked_solution(ending):
    assert free_form.parse_gsm8k(row('gsm8k', answer=f'So it is.\n{ending} ')).answers == (
        f'So it is.\n{ending}',
    )


def test_white_space_of_a_program_matters():
    item = free_form.parse_humaneval(row('humaneval'))
    assert item == Item(
        ROWS['humaneval']['prompt'],
        answers=('    return 2 * n\n',),
        test=ROWS['humaneval']['test'],
        entry_point='twice',
    )


@pytest.mark.parametrize('names', [('mr', 'ref'), ('meaning_representation', 'human_reference')])
def test_e2e_has_columns_of_two_names(names):
    fields = dict(zip(names, ROWS['e2e_nlg'].values(), strict=True))
    changed = row('e2e_nlg', **dict.fromkeys(ROWS['e2e_nlg'], ...) | fields)
    assert free_form.parse_e2e(changed) == Item(
        'name[Aroma], area[riverside]', answers=('Aroma is by the river.',)
    )


@pytest.mark.parametrize(
    'parse, name, changes, message',
    [
        (OSS, 'magicoder_oss', {'solution': ''}, ": field 'solution' is empty; it must be text."),
        (OSS, 'magicoder_oss', {'problem': ['x']}, ": field 'problem' is a list; it must be text."),
        (
            instructions.parse_alpaca,
            'alpaca_gpt4',
            {'output': None},
            ": field 'output' is missing (null); it must be text.",
        ),
        (
            instructions.parse_alpaca,
            'alpaca_gpt4',
            {'input': 3},
            ": field 'input' is 3; it must be text.",
        ),
        (
            instructions.parse_alpaca,
            'alpaca_gpt4',
            {'instruction': ' '},
            ": field 'instruction' is empty; it must be text.",
        ),
        (
            free_form.parse_gsm8k,
            'gsm8k',
            {'answer': 'There are 6 pears.'},
            ": field 'answer' ends in 'There are 6 pears.'; it must end in '#### ' and a number.",
        ),
        (
            free_form.parse_gsm8k,
            'gsm8k',
            {'answer': '#### 6\nor more'},
            ": field 'answer' ends in '#### 6\\nor more'; it must end in '#### ' and a number.",
        ),
        (
            free_form.parse_humaneval,
            'humaneval',
            {'entry_point': 'thrice'},
            ": field 'prompt' must define the function 'thrice'.",
        ),
        (
            free_form.parse_humaneval,
            'humaneval',
            {'test': 'assert twice(2) == 4'},
            ": field 'test' must define the function 'check'.",
        ),
        (
            free_form.parse_humaneval,
            'humaneval',
            {'canonical_solution': '\n'},
            ": field 'canonical_solution' is empty; it must be text.",
        ),
        (
            free_form.parse_e2e,
            'e2e_nlg',
            {'meaning_representation': ...},
            " has no field 'meaning_representation'; it has 'human_reference'.",
        ),
        (
            free_form.parse_e2e,
            'e2e_nlg',
            {'human_reference': ''},
            ": field 'human_reference' is empty; it must be text.",
        ),
    ],
)
def test_a_broken_row(parse, name, changes, message):
    assert broken_row_message(parse, row(name, **changes)) == message
