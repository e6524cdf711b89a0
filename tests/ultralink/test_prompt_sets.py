"""Prompt sets: those of each language, and those of the user."""

import re

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import criteria, prompts, translations
from malora_jax.ultralink.criteria import CRITERIA
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import read_manifest
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.openai_stub import document, serve_stub
from tests.ultralink.helpers import read_rows, run, run_successfully, write_rows

BUILT_IN = ('strict', 'paper')


def test_the_sets_have_digests_of_their_own():
    strict, paper = prompts.digests(), prompts.digests('paper')
    assert strict == prompts.digests('strict') and strict.keys() == paper.keys() == LANGUAGES.keys()
    assert all(strict[code] != paper[code] for code in LANGUAGES)
    for code in translations.target_languages():
        assert translations.digest(code) != translations.digest(code, 'paper')
    with pytest.raises(UserError, match=r"^Unknown prompt set 'papr': did you mean paper\?"):
        prompts.digests('papr')


def test_both_sets_score_the_same_criteria():
    strict, paper = map(criteria.system_message, BUILT_IN)
    assert strict != paper
    for name in CRITERIA:
        assert f'- {name}: ' in strict and f'- {name}: ' in paper
    # The paper names furniture, too.
    assert 'furniture' in paper and 'furniture' not in strict


@pytest.mark.parametrize('code', translations.target_languages())
@pytest.mark.parametrize('subset', translations.SUBSETS)
def test_translation_rules_are_in_their_language(code, subset):
    strict, paper = (translations.load(code, subset, each) for each in BUILT_IN)
    assert strict[1:] == paper[1:] and strict.system != paper.system
    assert identify_language(strict.system) == identify_language(paper.system) == code
    # The five rules of the paper.
    assert len(re.findall(r'^\d\. ', paper.system, re.MULTILINE)) == 5


def own_set(tmp_path, text):
    path = tmp_path / 'own.toml'
    path.write_text(text, 'utf-8')
    return str(path)


def test_a_set_of_the_user(tmp_path):
    """A user's set needs only the parts that a stage uses."""
    texts_of = '\n'.join(f'{subset} = "Traduis : {subset}."' for subset in translations.SUBSETS)
    path = own_set(tmp_path, f'[fr.translation]\n{texts_of}\n')
    assert translations.load('fr', 'math', path).system == 'Traduis : math.'
    assert translations.load('fr', 'math', path)[1:] == translations.load('fr', 'math')[1:]
    for use in (
        lambda: translations.load('es', 'math', path),
        lambda: prompts.load('fr', path),
        lambda: criteria.system_message(path),
    ):
        with pytest.raises(UserError, match=r'own.toml lacks (es.trans|fr.dial|en.crit)\w+, which'):
            use()


def test_a_fault_in_a_set_is_one_sentence(tmp_path):
    path = own_set(tmp_path, '[fr.translation]\nmaths = "Traduis."\n')
    with pytest.raises(UserError, match=r'own.toml: fr.translation.chat_agnostic is missing\.$'):
        translations.load('fr', 'math', path)
    names = '\n'.join(name for name in CRITERIA if name != 'places')
    other = own_set(tmp_path / '..', f"[en]\ncriteria = '''{names}'''\n")
    with pytest.raises(UserError, match=r"own.toml: en.criteria lacks the criterion 'places'\.$"):
        criteria.system_message(other)
    with pytest.raises(UserError, match=r'none.toml cannot be read: No such file'):
        criteria.system_message('none.toml')


@pytest.mark.slow
def test_dialogues_of_the_set_of_the_paper(tmp_path, weights):
    """All requests have the texts of the set, which the manifest records."""
    rows = [
        {**document(code, number, lines=4), 'id': f'{code}-{number}', 'language': code}
        for number, code in enumerate(LANGUAGES)
    ]
    source = write_rows(tmp_path / 'segments.jsonl', rows)
    with serve_stub() as stub:
        command = (
            *('dialogues', f'--input={source}', f'--tokenizer={weights}', '--llm=m'),
            *(f'--base-url={stub.address}', f'--output={tmp_path}/out', '--context-tokens=9000'),
        )
        run_successfully(*command, '--prompts=paper')
        sent = [
            [message['content'] for message in body['messages']] for body in stub.requests.values()
        ]
        assert {row['language'] for row in read_rows(tmp_path / 'out')} == set(LANGUAGES)
        done = run(*command)
    texts_of = {
        (prompts.load(code, 'paper').system_message, text)
        for code in LANGUAGES
        for text in prompts.load(code, 'paper').requirements.values()
    }
    for system, user in sent:
        assert any(system == its and f'\n\n{text}\n\n' in user for its, text in texts_of)
    assert read_manifest(tmp_path / 'out').settings['prompts'] == prompts.digests('paper')
    assert done.returncode == 2 and 'was made with prompts.' in done.stderr
