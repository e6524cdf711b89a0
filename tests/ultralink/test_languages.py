"""Language identification, on texts in the five languages and in related ones."""

import sys

import opencc
import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import optional_imports
from malora_jax.ultralink.languages import LANGUAGES, get_language
from malora_jax.ultralink.text.chinese_scripts import to_simplified
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.openai_stub import texts

# Languages that are not among the five, but related to one of them.
OTHERS = {
    'de': 'Warum wurde der Kanal von Albany nach Buffalo im neunzehnten Jahrhundert verbreitert?',
    'nl': 'Waarom werd het kanaal tussen Albany en Buffalo in de negentiende eeuw verbreed?',
    'pt': 'Por que razão o canal entre Albany e Buffalo foi alargado no século dezenove?',
    'it': 'Perché il canale tra Albany e Buffalo fu allargato nel corso del diciannovesimo secolo?',
    'ca': 'Per què es va eixamplar el canal entre Albany i Buffalo durant el segle dinou?',
    'uk': 'Чому канал між Олбані та Баффало розширили у дев’ятнадцятому столітті, і хто це зробив?',
    'ja': 'なぜオールバニとバッファローの間の運河は十九世紀に広げられたのですか？',
    'yue': '點解嗰條運河喺十九世紀要擴闊？佢哋話啲船咁多，行都行唔到，係咪真㗎？',
}


@pytest.mark.parametrize('code', LANGUAGES)
def test_questions_and_answers_are_in_their_language(code):
    wrong = [
        text
        for kind in ('questions', 'answers')
        for text in texts()[code][kind]
        if identify_language(text) != code
    ]
    assert not wrong


@pytest.mark.parametrize('code', LANGUAGES)
def test_lead_ins_are_in_their_language(code):
    assert identify_language(LANGUAGES[code].lead_in) == code


@pytest.mark.parametrize('code', OTHERS)
def test_neighbours_are_not_taken_for_one_of_the_five(code):
    assert identify_language(OTHERS[code]) not in {*LANGUAGES} - {code}


def test_traditional_chinese_is_told_from_simplified():
    to_traditional = opencc.OpenCC('s2t').convert
    for text in texts()['zh']['questions'] + texts()['zh']['answers']:
        traditional = to_traditional(text)
        assert identify_language(traditional) == 'zh-Hant'
        assert identify_language(to_simplified(traditional)) == 'zh'


def test_the_end_of_a_long_text_counts():
    english, russian = texts()['en']['answers'][0], texts()['ru']['answers'][0]
    assert identify_language(english + russian * 9) == 'ru'
    assert identify_language(english * 9) == 'en'


@pytest.mark.parametrize('text', ['', ' \n', '1848, 12.5 %', '…!?'])
def test_a_text_without_a_letter_is_in_no_language(text):
    assert identify_language(text) == ''


def test_an_unknown_code_is_one_line():
    with pytest.raises(UserError, match=r"^Unknown language 'zhh': did you mean zh\?"):
        get_language('zhh')


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'opencc', None)
    with pytest.raises(UserError, match=r'^opencc is not installed: .*\.\[ultralink\]'):
        optional_imports.import_extra('opencc')
