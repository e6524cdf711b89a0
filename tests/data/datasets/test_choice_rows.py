"""Parsers of multiple-choice rows: parsed items, and messages about broken rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data.datasets import BrokenRowError, Item
from malora_jax.data.datasets import multiple_choice as parsers
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from tests.helpers.benchmark_rows import LOCATION, broken_row_message, row


def test_medmcqa_counts_from_0():
    options = ('Thiamine', 'Glucose', 'Keratin', 'Water')
    assert parsers.parse_medmcqa(row('medmcqa')) == Item('Which one is a vitamin?', '', options, 0)
    assert [parsers.parse_medmcqa(row('medmcqa', cop=cop)).label for cop in (3, '0', ' 2')] == [
        3,
        0,
        2,
    ]


def test_an_original_file_of_medmcqa_is_refused_as_a_whole():
    """Skipping single rows would not help, because all other labels are wrong as well."""
    with pytest.raises(UserError) as caught:
        parsers.parse_medmcqa(row('medmcqa', cop='4'))
    assert not isinstance(caught.value, BrokenRowError)
    assert str(caught.value) == (
        f"{LOCATION}: field 'cop' is 4, so this is an original file, which numbers the options "
        'from 1; use the rows from the Hugging Face hub, which number them from 0.'
    )


def test_which_questions_of_medmcqa_are_scored():
    assert parsers.is_clean_medmcqa(row('medmcqa'))
    assert not parsers.is_clean_medmcqa(row('medmcqa', choice_type='multi'))
    assert not parsers.is_clean_medmcqa(row('medmcqa', opc='Water '))
    assert broken_row_message(parsers.is_clean_medmcqa, row('medmcqa', choice_type='two')) == (
        ": field 'choice_type' is 'two'; it must be 'single' or 'multi'."
    )


def test_arc_has_letters_or_numbers_for_labels():
    assert parsers.parse_arc(row('arc_challenge')) == Item(
        'Which one rusts?', '', ('milk', 'sand', 'iron', 'wool'), 2
    )
    assert parsers.parse_arc(row('arc_easy')) == Item(
        'Which one is wet?', '', ('sand', 'rain', 'dust'), 1
    )


@given(st.lists(st.text('abc', min_size=1), min_size=2, max_size=5, unique=True), st.data())
def test_the_label_is_the_place_of_the_key(options, data):
    labels = data.draw(st.sampled_from(['ABCDE', '12345']))[: len(options)]
    index = data.draw(st.integers(0, len(options) - 1))
    choices = {'text': options, 'label': list(labels)}
    item = parsers.parse_arc(
        Row(LOCATION, dict(question='q', choices=choices, answerKey=labels[index]))
    )
    assert (item.options, item.label) == (tuple(options), index)


def test_openbookqa():
    item = parsers.parse_openbookqa(row('openbookqa', question_stem=' A sheep gives '))
    assert item == Item('A sheep gives', '', ('milk', 'sand', 'iron', 'wool'), 3)


def test_piqa():
    assert parsers.parse_piqa(row('piqa', label='1')) == Item(
        'To cool tea,', '', ('blow on it.', 'boil it.'), 1
    )


@pytest.mark.parametrize('answer, label', [(True, 0), (False, 1), ('true', 0), ('False', 1)])
def test_boolq(answer, label):
    assert parsers.parse_boolq(row('boolq', answer=answer)) == Item(
        'is tea a drink', 'Tea -- Tea is a drink made of leaves.', ('Yes', 'No'), label
    )


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('medmcqa', {'cop': -1}, ": field 'cop' is -1; it must be 0 to 3"),
        ('medmcqa', {'cop': 5}, ": field 'cop' is 5; it must be 0 to 3"),
        ('medmcqa', {'cop': True}, ": field 'cop' is True; it must be a whole number."),
        ('medmcqa', {'cop': 1.0}, ": field 'cop' is 1.0; it must be a whole number."),
        ('medmcqa', {'cop': 'a'}, ": field 'cop' is 'a'; it must be a whole number."),
        ('medmcqa', {'cop': '²'}, ": field 'cop' is '²'; it must be a whole number."),
        ('medmcqa', {'opb': ' '}, ": field 'opb' is empty; it must be text."),
        ('medmcqa', {'opb': None}, ": field 'opb' is missing (null); it must be text."),
        (
            'medmcqa',
            {'opc': 'Water ', 'cop': 3},
            ": the right option ('Water') appears 2 times; all other options must differ from it.",
        ),
        ('medmcqa', {'question': ''}, ": field 'question' is empty; it must be text."),
        (
            'piqa',
            {'label': -1},
            ": field 'label' is -1; it must be 0 to 1 (the test split has no labels).",
        ),
        ('piqa', {'label': '2'}, ": field 'label' is 2; it must be 0 to 1"),
        ('piqa', {'sol1': 3}, ": field 'sol1' is 3; it must be text."),
        (
            'piqa',
            {'sol2': ...},
            " has no field 'sol2'; it has 'goal', 'sol1', 'label'.",
        ),
        ('boolq', {'answer': 1}, ": field 'answer' is 1; it must be true or false."),
        ('boolq', {'answer': 'yes'}, ": field 'answer' is 'yes'; it must be true or false."),
        ('boolq', {'passage': None}, ": field 'passage' is missing (null); it must be text."),
        ('arc', {'answerKey': 'E'}, ": field 'answerKey' is 'E'; it must be one of A, B, C, D."),
        ('arc', {'answerKey': ''}, ": field 'answerKey' is empty; it must be text."),
        ('arc', {'answerKey': 'AB'}, ": field 'answerKey' is 'AB'; it must be one of A, B, C, D."),
        ('arc', {'choices': 'A'}, ": field 'choices' must be an object with a list 'text'."),
        (
            'arc',
            {'choices': {'text': ['a', 'b']}},
            ": field 'choices' must be an object with a list 'label'.",
        ),
        (
            'arc',
            {'choices': {'text': ['a', None], 'label': ['A', 'B']}},
            ": entry 2 of 'text' is missing (null); it must be text.",
        ),
        (
            'arc',
            {'choices': {'text': ['a', 'b', 'c'], 'label': ['A', 'C', 'B']}},
            ": the labels in 'choices' are A, C, B for 3 options; they must be A to E or 1 to 5 in "
            'order, one for each.',
        ),
        (
            'arc',
            {'choices': {'text': ['a', 'b', 'c'], 'label': ['AB', 'C']}},
            ": the labels in 'choices' are AB, C for 3 options; they must be A to E",
        ),
        (
            'arc',
            {'choices': {'text': ['a', 'b', 'a'], 'label': ['A', 'B', 'C']}, 'answerKey': 'C'},
            ": the right option ('a') appears 2 times; all other options must differ from it.",
        ),
        (
            'arc',
            {'choices': {'text': ['a'], 'label': ['A']}, 'answerKey': 'A'},
            ' has 1 options; there must be 2 or more.',
        ),
        (
            'openbookqa',
            {'question_stem': ...},
            " has no field 'question_stem'; it has 'id', 'choices', 'answerKey'.",
        ),
    ],
)
def test_a_broken_row(name, changes, message):
    sample = {'arc': 'arc_challenge'}.get(name, name)
    assert broken_row_message(getattr(parsers, f'parse_{name}'), row(sample, **changes)).startswith(
        message
    )


@pytest.mark.parametrize(
    'value, shown',
    [
        (['a'], 'a list'),
        ({'a': 1}, 'an object'),
        (True, 'True'),
        (b'a', "b'a'"),
        (b'a' * 99, "b'" + 'a' * 58 + '…'),
    ],
)
def test_what_is_no_text_is_named(value, shown):
    assert broken_row_message(parsers.parse_piqa, row('piqa', goal=value)) == (
        f": field 'goal' is {shown}; it must be text."
    )


def test_half_a_character_is_no_text():
    assert broken_row_message(parsers.parse_piqa, row('piqa', goal='tea \ud83d')) == (
        ": field 'goal' is not UTF-8: save the file as UTF-8."
    )


def test_a_table_without_its_header_is_recognised():
    changed = Row(LOCATION, {'x' * 50: 'a', '1': 'b'})
    assert broken_row_message(parsers.parse_piqa, changed) == (
        f" has no field 'sol1'; it has '{'x' * 40}', '1'."
    )
    assert (
        broken_row_message(parsers.parse_piqa, Row(LOCATION, {}))
        == " has no field 'sol1'; it has none."
    )


def test_wrong_options_may_be_the_same():
    twice = {'text': ['a', 'b', 'a'], 'label': ['A', 'B', 'C']}
    item = parsers.parse_arc(row('arc_challenge', choices=twice, answerKey='B'))
    assert (item.options, item.label) == (('a', 'b', 'a'), 1)
