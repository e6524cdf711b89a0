"""Checks of questions and answers: handwritten ones pass, and faults are detected."""

import itertools

import pytest

from malora_jax.ultralink import prompts
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.text.shingles import similarity
from malora_jax.ultralink.turn_checks import answer_fault, question_fault
from tests.helpers.openai_stub import texts

ALL = [(code, kind) for code in LANGUAGES for kind in ('questions', 'answers')]
SPEAKS = {
    'en': [
        'According to the text, why did New York build the Erie Canal?',
        'What does the passage say about DeWitt Clinton and the Erie Canal?',
        'Why, as mentioned above, did Ohio sell wheat in New York?',
        'How does the author explain the growth of Rochester?',
        'Based on the provided document, what did Canvass White find in 1818?',
    ],
    'zh': [
        '根据文章，李冰为什么要修建都江堰？',
        '文中提到的飞沙堰有什么作用？',
        '作者认为都江堰和郑国渠有何不同？',
        '都江堰如上所述是怎样排沙的？',
        '基于以上材料，宝瓶口是如何开凿的？',
    ],
    'ru': [
        'Почему, согласно тексту, Транссиб обошёл Амур?',
        'Что в этом документе сказано о роли Сергея Витте?',
        'Как автор объясняет рост Новосибирска?',
        'Зачем нужна была упомянутая выше переправа через Байкал?',
        'Как описывает автор постройку моста через Обь?',
        'Как, исходя из отрывка, строили Транссиб в Забайкалье?',
    ],
    'fr': [
        'Selon le texte, pourquoi Colbert a-t-il soutenu Riquet ?',
        'Que dit le document sur le seuil de Naurouze ?',
        'Comme mentionné plus haut, comment Riquet a-t-il payé le canal du Midi ?',
        'Comment l’auteur explique-t-il le rôle de Vauban dans ce document ?',
        'D’après l’article, quel fut le coût du canal du Midi ?',
    ],
    'es': [
        'Según el texto, ¿por qué eligió Muhammad I la Sabika?',
        '¿Qué dice el autor sobre el Patio de los Leones?',
        '¿Cómo se pagó el palacio de Carlos V, mencionado anteriormente?',
        '¿Qué papel tuvo Washington Irving de acuerdo con el documento?',
        '¿Qué información sobre la Alcazaba aparece en este fragmento?',
    ],
}
DANGLING = {
    'en': [
        'Why did he do it?',
        'How did this event change the state of New York?',
        'And what happened in Rochester in 1842?',
        'What about the Erie Canal in winter?',
    ],
    'zh': [
        '他为什么要这样做？',
        '这一事件给成都平原带来了什么影响？',
        '那么都江堰后来怎样了？',
        '该工程的上述话题为什么重要？',
    ],
    'ru': [
        'Почему он так поступил?',
        'Как это событие изменило Сибирь?',
        'А что было с Новосибирском дальше?',
        'Каким был тот период для Омска?',
    ],
    'fr': [
        'Pourquoi a-t-il agi ainsi ?',
        'Comment cet événement a-t-il changé Toulouse ?',
        'Et que fit Riquet en 1680 ?',
        'Qu’en est-il du canal du Midi ?',
    ],
    'es': [
        '¿Por qué lo hizo ella?',
        '¿Cómo cambió ese acontecimiento la ciudad de Granada?',
        '¿Y qué hizo Carlos V en 1526?',
        '¿Qué obra mandó hacer este último en Granada?',
    ],
}


def of_question(text, code, earlier=(), reason='stop'):
    return question_fault(
        Reply(text, reason, 1),
        code,
        prompts.load(code),
        earlier,
        min_characters=6,
        max_characters=300,
        max_similarity=0.6,
    )


def of_answer(text, code, reason='stop'):
    return answer_fault(Reply(text, reason, 1), code, prompts.load(code), min_characters=10)


@pytest.mark.parametrize('code, kind', ALL)
def test_what_was_written_passes(code, kind):
    fault_of = of_question if kind == 'questions' else of_answer
    assert {
        text: fault_of(text, code) for text in texts()[code][kind] if fault_of(text, code)
    } == {}


@pytest.mark.parametrize('code', LANGUAGES)
def test_what_speaks_of_the_text(code):
    assert {text: of_question(text, code) for text in SPEAKS[code]} == dict.fromkeys(
        SPEAKS[code], 'speaks of the text'
    )
    for answer in texts()[code]['answers']:
        assert of_answer(f'{texts()[code]["cites"]} {answer}', code) == 'speaks of the text'


@pytest.mark.parametrize('code', LANGUAGES)
def test_what_does_not_stand_alone(code):
    assert {text: of_question(text, code) for text in DANGLING[code]} == dict.fromkeys(
        DANGLING[code], 'not self-contained'
    )


@pytest.mark.parametrize('code, kind', ALL)
def test_another_language(code, kind):
    fault_of = of_question if kind == 'questions' else of_answer
    for other in LANGUAGES:
        if other != code:
            assert {fault_of(text, code) for text in texts()[other][kind]} == {'language'}


@pytest.mark.parametrize(
    'text',
    [
        'Why was the Erie Canal dug? Who dug it?',
        '1. Why was the Erie Canal dug?',
        '- Why was the Erie Canal dug?',
        'Tell me about the Erie Canal.',
        'Here is a question:\nWhy was the Erie Canal dug?',
        'Why was the Erie Canal dug? It carried grain.',
    ],
)
def test_what_is_not_one_question(text):
    assert of_question(text, 'en') == 'not one question'


def test_lengths_and_reasons_to_finish():
    question = texts()['en']['questions'][0]
    assert of_question('Why?', 'en') == 'length'
    assert of_question(question * 9, 'en') == 'length'
    assert of_answer('Because.', 'en') == 'short'
    for fault_of in (of_question, of_answer):
        assert fault_of(question, 'en', reason='length') == 'truncated'
        assert fault_of('', 'en', reason='malformed') == 'malformed'
        assert fault_of('', 'en', reason='refused') == 'refused'


@pytest.mark.parametrize('code', LANGUAGES)
def test_a_question_that_was_asked_before(code):
    questions = texts()[code]['questions']
    for one, two in itertools.combinations(questions, 2):
        assert of_question(one, code, [two]) == ''
    for question in questions:
        # The same question in other case and punctuation.
        again = f'  {question.upper() if code != "zh" else question[:-1] + " ？"}'.strip()
        assert of_question(question, code, ['x', again]) == 'asked before'


def test_similarity_against_counts_by_hand():
    # abc bcd cde against abc bcd bce: 2 of 4.
    assert similarity('Ab-c, d e', 'ABCD') == 2 / 3
    assert similarity('abcde', 'abcdf') == 2 / 4
    assert similarity('ab', 'ab') == 1.0
    assert similarity('?', '') == 1.0
    assert similarity('abc', 'xyz') == 0.0
