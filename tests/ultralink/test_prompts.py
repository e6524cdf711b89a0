"""Prompts: their presence in every language, and the text that a model gets."""

import dataclasses
import re

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import criteria, prompts, translations
from malora_jax.ultralink.criteria import CRITERIA
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm.chat import ChatMessage
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.openai_stub import texts

BUILT_IN = ('strict', 'paper')
SETS = [(code, prompt_set) for code in LANGUAGES for prompt_set in BUILT_IN]
TURNS = [('Question one $x?', 'Answer {one}.'), ('Question two?', 'Answer two.')]


@pytest.mark.parametrize('code, prompt_set', SETS)
@pytest.mark.parametrize('stage', prompts.PROMPT_NAMES)
def test_a_prompt_holds_what_it_needs(code, prompt_set, stage):
    loaded = prompts.load(code, prompt_set)
    document = 'A text with $document, {history} and </document>.'
    system, user = loaded.messages(stage, document, TURNS, 'The last one?')
    assert (system.role, user.role) == ('system', 'user')
    assert f'<document>\n{document}\n</document>' in user.content
    for asked, answered in TURNS:
        turn = f'{loaded.question_label}{asked}\n{loaded.answer_label}{answered}'
        assert (turn in user.content) == (not stage.startswith('initial'))
    assert ('The last one?' in user.content) == stage.endswith('answer')
    assert user.content.endswith(('.', '。'))


@pytest.mark.parametrize('code, prompt_set', SETS)
def test_prompts_are_in_their_language_and_with_their_spaces(code, prompt_set):
    loaded = prompts.load(code, prompt_set)
    for stage in prompts.PROMPT_NAMES:
        system, user = loaded.messages(stage, texts()[code]['answers'][0])
        assert identify_language(system.content) == identify_language(user.content) == code
        if LANGUAGES[code].word_spaces:
            assert system.content.count(' ') > len(system.content) / 10
    assert len(set(loaded.requirements.values())) == 5


@pytest.mark.parametrize('code, prompt_set', SETS)
def test_all_requests_about_a_document_begin_with_it(code, prompt_set):
    loaded = prompts.load(code, prompt_set)
    for stage in prompts.PROMPT_NAMES:
        system, user = loaded.messages(stage, 'Its text.', TURNS, 'The last one?')
        assert system.content == loaded.system_message
        start = f'<document>\nIts text.\n</document>\n\n{loaded.requirements[stage]}\n\n'
        assert user.content.startswith(start)


@pytest.mark.parametrize('prompt_set', BUILT_IN)
def test_languages_ask_for_the_same_things(prompt_set):
    bullets = {
        code: [
            prompts.load(code, prompt_set).requirements[stage].count('\n- ')
            for stage in prompts.PROMPT_NAMES
        ]
        for code in LANGUAGES
    }
    assert len(set(map(tuple, bullets.values()))) == 1, bullets


def test_the_digest_is_of_all_files(monkeypatch):
    found = prompts.digest()
    for code, language in LANGUAGES.items():
        labels = dataclasses.replace(language.labels, answer='another')
        with monkeypatch.context() as changed:
            changed.setitem(LANGUAGES, code, dataclasses.replace(language, labels=labels))
            assert prompts.digest() != found
    assert prompts.digest() == found


def test_messages_are_plain():
    [system, user] = prompts.load('en').messages('initial_question', 'Text.')
    assert isinstance(system, ChatMessage) and isinstance(user, ChatMessage)


def test_the_sets_have_digests_of_their_own():
    assert prompts.digest() == prompts.digest('strict') != prompts.digest('paper')
    for code in translations.target_languages():
        assert translations.digest(code) != translations.digest(code, 'paper')
    with pytest.raises(UserError, match=r"^Unknown prompt set 'papr': did you mean paper\?"):
        prompts.digest('papr')


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
