"""Files of languages: discovery, and one sentence for each fault."""

import importlib.resources
import re
import tomllib

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import paper_statistics, translation_checks, translations
from malora_jax.ultralink.language_schema import parse_language, parse_prompt_sets
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.paths import FIXTURES, ROOT
from tests.ultralink.helpers import run

ITALIAN = (FIXTURES / 'ultralink_italian.toml').read_text('utf-8')


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
        ("name = 'Italian'", "name = ' '", 'name is empty; write its text, or remove the field'),
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
    ],
)
def test_a_fault_names_file_and_key(old, new, message):
    assert old in ITALIAN
    parse_language(ITALIAN, 'it.toml')
    with pytest.raises(UserError) as error:
        parse_language(ITALIAN.replace(old, new, 1), 'it.toml')
    found = str(error.value)
    assert found.startswith(f'it.toml: {message}') and found.endswith('.') and '\n' not in found


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
