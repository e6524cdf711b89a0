"""Files of languages: discovery, and one sentence for each fault."""

import dataclasses
import importlib.resources
import pathlib
import re
import tomllib

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import (
    languages,
    paper_statistics,
    prompts,
    translation_checks,
    translations,
)
from malora_jax.ultralink.commands import HumanevalConfig
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.language_schema import parse_language, parse_prompt_sets
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.text.language_identification import identify_language
from malora_jax.ultralink.translate import TranslateConfig
from tests.helpers.paths import FIXTURES, ROOT
from tests.ultralink.helpers import run

ITALIAN = (FIXTURES / 'ultralink_italian.toml').read_text('utf-8')


@pytest.fixture
def restored_languages():
    """Remove the languages that a test adds."""
    before = dict(LANGUAGES)
    yield
    LANGUAGES.clear()
    LANGUAGES.update(before)


def test_every_file_in_the_folder_is_a_language():
    folder = importlib.resources.files('malora_jax.ultralink') / 'language_files'
    codes = {path.name.removesuffix('.toml') for path in folder.iterdir()}
    assert codes == set(LANGUAGES)
    assert all(code == language.code for code, language in LANGUAGES.items())
    # Tables have the languages in the order of the paper; others follow.
    in_paper = len(paper_statistics.LANGUAGES)
    assert tuple(LANGUAGES)[:in_paper] == paper_statistics.LANGUAGES
    assert sorted(list(LANGUAGES)[in_paper:]) == list(LANGUAGES)[in_paper:]


@pytest.mark.parametrize('code', LANGUAGES)
def test_a_built_in_language_is_complete(code):
    language = LANGUAGES[code]
    assert {*language.prompts} == {'strict', 'paper'}
    for prompt_set in language.prompts.values():
        assert prompt_set.dialogues
        assert bool(prompt_set.criteria) == (code == 'en')
        assert bool(prompt_set.translation) == (code != 'en') == bool(language.demonstrations)
    assert language.neighbors and code not in language.neighbors


@pytest.mark.parametrize('code', translations.target_languages())
@pytest.mark.parametrize('subset', translations.SUBSETS)
def test_demonstrations_pass_the_checks(code, subset):
    prompt = translations.load(code, subset)
    assert not translation_checks.faults(prompt.source, prompt.translation, code, identify_language)


def leaves(value, name=()):
    """Yield the path and the value of each field in nested tables."""
    for key, part in value.items():
        yield from leaves(part, (*name, key)) if isinstance(part, dict) else [((*name, key), part)]


def test_the_examples_of_the_guide():
    """They are a part of the file that goes through all stages, and a valid prompt set."""
    page = (ROOT / 'docs' / 'guides' / 'ultralink_languages.md').read_text('utf-8')
    language, prompt_set = re.findall('```toml\n(.*?)```', page, re.DOTALL)
    complete = dict(leaves(tomllib.loads(ITALIAN)))
    optional = {('word_spaces',): True, ('patterns', 'question_marks'): '?'}
    for name, value in leaves(tomllib.loads(language)):
        found = (optional | complete)[name]
        assert set(value) <= set(found) if isinstance(value, list) else value == found, name
    assert parse_prompt_sets(prompt_set, 'own.toml').keys() == {'fr'}


@pytest.mark.parametrize(
    'old, new, message',
    [
        ("name = 'Italian'", '', 'name is missing'),
        ("name = 'Italian'", 'name = 5', 'name is 5; it must be text in quotes'),
        ("name = 'Italian'", "name = ' '", 'name is empty; write its text.'),
        ("code = 'it'", "code = 'Italian'", "code is 'Italian'; it must be an ISO 639 code"),
        ("separator = ','", "separator = ' '", "decimal_separator is ' '; it must be '.' or ','"),
        ("neighbors = ['es'", "neighbours = ['es'", 'neighbors is missing'),
        ("question = 'Domanda: '", '', 'labels.question is missing'),
        (
            '[labels]',
            '[labels]\nquestions = "Domande: "',
            "labels.questions is 'Domande: '; it must",
        ),
        ('[patterns]', '[pattern]', 'patterns is missing'),
        ('^e (?:', '^e ((?:', 'patterns.refers[0] is '),
        (
            "['''^e (?:che|come|perché)\\b''']",
            "['']",
            "patterns.refers[0] is '', which matches an",
        ),
        (
            "'mil(?:le|a)'",
            "'mil(?:le'",
            "numbers.scale_words is 'mil(?:le', which is not a valid reg",
        ),
        ('[demonstrations.code]', '[demonstrations.coding]', 'demonstrations.code is missing'),
        (
            'Domanda: $question',
            'Domanda: $domanda',
            'prompts.strict.dialogues.initial_answer.user lacks $question',
        ),
        (
            'Scrivi la prima domanda',
            'Scrivi la prima domanda su $document',
            'prompts.strict.dialogues.initial_question.user has the unknown placeholder $docu',
        ),
        (
            'Domanda: $question',
            'Domanda: $question, 5 $',
            'prompts.strict.dialogues.initial_answer.user has a $ without a placeholder',
        ),
        ('[prompts.strict.translation]', '[prompts.strict.translations]', 'prompts.strict.transl'),
        (
            '[labels]',
            "[numbers.scale_characters]\n'mila' = 1_000\n[labels]",
            "numbers.scale_characters has 'mila'; it must be one character",
        ),
        ("name = 'Italian'", 'name = true', 'name is true; it must be text in quotes.'),
        (
            "decimal_separator = ','",
            "decimal_separator = ','\nword_spaces = 'no'",
            "word_spaces is 'no'; it must be true or false.",
        ),
        (
            "decimal_separator = ','",
            "decimal_separator = ','\nword_space = false",
            'word_space is false; it must be absent, because there is no such field (did you mean '
            'word_spaces?).',
        ),
        (
            '[patterns]',
            "[patterns]\nquestion_marks = ''",
            'patterns.question_marks is empty; write its text, or remove the field.',
        ),
        (
            'Domanda: $question',
            'Domanda: $domanda',
            'prompts.strict.dialogues.initial_answer.user lacks $question and has the unknown '
            'placeholder $domanda.',
        ),
        ("neighbors = ['es'", "neighbors = ['it'", "neighbors has 'it', the language itself."),
        ("'milion[ei]' = 1_000_000", "'milion[ei]' = 0", 'numbers.scale_words.milion[ei] is 0; it'),
    ],
)
def test_a_fault_names_file_and_key(old, new, message):
    assert old in ITALIAN
    parse_language(ITALIAN, 'it.toml')
    with pytest.raises(UserError) as error:
        parse_language(ITALIAN.replace(old, new, 1), 'it.toml')
    found = str(error.value)
    assert found.startswith(f'it.toml: {message}') and found.endswith('.') and '\n' not in found


@pytest.mark.parametrize(
    'old, new, message',
    [
        ("code = 'it'", "code = 'xq'", "code: Unknown language of the model lid.176 'xq': "),
        (
            "['es', 'fr'",
            "['es', 'french'",
            "neighbors[1]: Unknown language of the model lid.176 'french': did you mean fr",
        ),
        (
            "['''^e (?:che|come|perché)\\b''']",
            "['''(\\w+\\s?)+$''']",
            r"patterns.refers[0] is '(\\w+\\s?)+$', which takes more than 1 second",
        ),
        (
            "'milion[ei]'",
            r"'(\d+ ?)+x'",
            r"numbers.scale_words is '(\\d+ ?)+x', which takes more than 1 second",
        ),
        (
            'Come posso dormire meglio se lavoro fino alle 10 di sera?',
            'Come posso dormire meglio se lavoro fino alle 11 di sera?',
            'demonstrations.chat_agnostic.translation does not pass the check of numbers: missing',
        ),
        (
            'Come posso dormire meglio se lavoro fino alle 10 di sera?',
            'How can I sleep better if I work until 10 in the evening?',
            'demonstrations.chat_agnostic.translation does not pass the check of language: en, not',
        ),
    ],
)
@pytest.mark.usefixtures('restored_languages')
def test_an_own_file_is_tried(tmp_path, old, new, message):
    path = tmp_path / 'it.toml'
    assert old in ITALIAN
    path.write_text(ITALIAN.replace(old, new, 1), 'utf-8')
    with pytest.raises(UserError) as error:
        languages.add_file(path)
    found = str(error.value)
    assert (
        found.startswith(f'{path}: {message}') and found.endswith(('.', '?')) and '\n' not in found
    )


@pytest.mark.usefixtures('restored_languages')
def test_the_mark_of_utf_8_and_crlf_are_accepted(tmp_path):
    path = tmp_path / 'it.toml'
    path.write_bytes(b'\xef\xbb\xbf' + ITALIAN.replace('\n', '\r\n').encode())
    assert languages.add_file(path).name == 'Italian'


def test_english_of_a_user_is_no_target(monkeypatch):
    monkeypatch.setitem(LANGUAGES, 'en', dataclasses.replace(LANGUAGES['de'], code='en'))
    assert 'en' not in translations.target_languages()


@pytest.mark.usefixtures('restored_languages')
def test_a_missing_prompt_set_names_the_file(tmp_path):
    path = tmp_path / 'it.toml'
    path.write_text(ITALIAN.replace('[prompts.strict', '[prompts.strickt'), 'utf-8')
    languages.add_file(path)
    with pytest.raises(UserError) as error:
        prompts.load('it')
    assert str(error.value).startswith(f'{path} has no [prompts.strict]: ')
    assert str(error.value).endswith('did you mean strickt?')
    path.write_text(re.sub(r'\[prompts.strict.translation\](\n.+)+', '', ITALIAN), 'utf-8')
    languages.add_file(path)
    with pytest.raises(UserError, match=f'^{path} lacks prompts.strict.translation, which this'):
        translations.load('it', 'math')


@pytest.mark.parametrize(
    'value, hint',
    [
        ('/tmp/pt', '(The path of the file of a language must end in .toml.)'),
        ('pt.tml', '(The path of the file of a language must end in .toml.)'),
        ('pt', '(For a language of your own, name its file: --language=pt.toml.)'),
    ],
)
@pytest.mark.parametrize(
    'config',
    [
        lambda code: HumanevalConfig(pathlib.Path('a'), pathlib.Path('b'), code),
        DocumentsConfig,
        TranslateConfig,
    ],
)
def test_the_hint_of_an_unknown_language(config, value, hint):
    with pytest.raises(UserError, match=f"^Unknown language '{value}': ") as error:
        config(value)
    assert str(error.value).endswith(hint) and '--language-files' not in str(error.value)


def test_a_translation_into_english_mentions_own_files():
    with pytest.raises(UserError, match='or the path of the TOML file of another language'):
        TranslateConfig('en')


def test_a_file_that_is_no_toml(tmp_path):
    path = tmp_path / 'it.toml'
    path.write_text('code = it', 'utf-8')
    command = ('documents', '--input=none.jsonl', '--tokenizer=none', f'--output={tmp_path}/out')
    done = run(*command, f'--language={path}')
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert done.stderr.startswith(f'{path} is not a valid TOML file: Invalid value (at line 1')
    path.write_bytes(b'code = "\xff"')
    assert run(*command, f'--language={path}').stderr == f'{path} is not UTF-8.\n'
    done = run(*command, '--language=itt')
    assert done.stderr.startswith("Unknown language 'itt': ")
