"""Prompts: their presence in every language, and the text that a model gets."""

import dataclasses

import pytest

from malora_jax.ultralink import prompts
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
    found = prompts.digests()
    for code, language in LANGUAGES.items():
        labels = dataclasses.replace(language.labels, answer='another')
        with monkeypatch.context() as changed:
            changed.setitem(LANGUAGES, code, dataclasses.replace(language, labels=labels))
            assert prompts.digests() != found
    assert prompts.digests() == found


def test_messages_are_plain():
    [system, user] = prompts.load('en').messages('initial_question', 'Text.')
    assert isinstance(system, ChatMessage) and isinstance(user, ChatMessage)
