"""Financial PhraseBank: rows of the hub, the released text file, and its zip archive."""

import zipfile

import pytest

from malora_jax.data.datasets import Item
from malora_jax.data.datasets.phrasebank import parse_phrasebank, read_phrasebank
from malora_jax.errors import UserError
from tests.helpers.benchmark_rows import broken_row_message, row

LINES = 'Sales in Jyväskylä rose .@positive\n\nMail a@b.com for more .@neutral\r\n'


def rows(path) -> list[tuple[str, dict]]:
    return [
        (row.location.removeprefix(f'{path.parent}/'), row.fields) for row in read_phrasebank(path)
    ]


def expected(name: str) -> list[tuple[str, dict]]:
    return [
        (f'{name} line 1', {'sentence': 'Sales in Jyväskylä rose .', 'label': 'positive'}),
        (f'{name} line 3', {'sentence': 'Mail a@b.com for more .', 'label': 'neutral'}),
    ]


@pytest.mark.parametrize('label, index', [(0, 0), ('1', 1), ('negative', 0), ('positive', 2)])
def test_a_label_is_a_word_or_its_index(label, index):
    assert parse_phrasebank(row('phrasebank', label=label)) == Item(
        'Profit rose to EUR 3 mn .', '', ('negative', 'neutral', 'positive'), index
    )


@pytest.mark.parametrize('encoding', ['latin-1', 'utf-8', 'utf-8-sig'])
def test_a_text_file(tmp_path, encoding):
    path = tmp_path / 'Sentences_75Agree.txt'
    path.write_bytes(LINES.encode(encoding))
    assert rows(path) == expected(path.name)
    assert [parse_phrasebank(row).label for row in read_phrasebank(path)] == [2, 1]


def test_the_released_zip(tmp_path):
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('FinancialPhraseBank-v1.0/Sentences_75Agree.txt', LINES.encode('latin-1'))
        archive.writestr('FinancialPhraseBank-v1.0/Sentences_AllAgree.txt', 'x@neutral')
        archive.writestr('__MACOSX/FinancialPhraseBank-v1.0/._Sentences_75Agree.txt', b'\x00')
    assert rows(path) == expected('a.zip')


def test_any_other_file_has_columns(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('sentence,label\nFlat .,1\n', 'utf-8')
    assert rows(path) == [('a.csv line 2', {'sentence': 'Flat .', 'label': '1'})]


def test_a_zip_of_something_else(tmp_path):
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('Sentences_AllAgree.txt', 'x@neutral')
    with pytest.raises(UserError) as caught:
        read_phrasebank(path)
    assert str(caught.value) == f'{path} must hold one file Sentences_75Agree.txt, not 0.'
    path.write_bytes(b'PK')
    with pytest.raises(UserError) as caught:
        read_phrasebank(path)
    assert str(caught.value).startswith(f'{path} is not a complete zip file (')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'label': 3}, ": field 'label' is 3; it must be 0 to 2."),
        (
            {'label': 'good'},
            ": field 'label' is 'good'; it must be negative, neutral, positive or the index of "
            'one.',
        ),
        ({'label': None}, ": field 'label' is missing (null); it must be a whole number."),
        ({'label': ...}, " has no field 'label'; it has 'sentence'."),
        ({'sentence': ''}, ": field 'sentence' is empty; it must be text."),
    ],
)
def test_a_broken_row(changes, message):
    assert broken_row_message(parse_phrasebank, row('phrasebank', **changes)) == message
