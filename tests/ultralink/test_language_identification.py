"""Language identification of public texts, of long texts, and of what the stages classify."""

import concurrent.futures
import dataclasses
import json

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import languages
from malora_jax.ultralink.text.language_identification import describe_language, identify_language
from tests.fixtures.make_languages import FILE
from tests.helpers.openai_stub import texts
from tests.ultralink.language_texts import KINDS, RELATIVES, TARGETS

GROUPS = json.loads(FILE.read_text('utf-8'))
SAMPLES = {(group['language'], group['kind']): group['texts'] for group in GROUPS}
# Relatives whose texts of a kind are accepted too often, as docs/ultralink_results.md reports.
TOO_CLOSE = {('wuu', 'sentences'), ('wuu', 'questions'), ('gl', 'questions'), ('uk', 'questions')}
# Texts in the language of the key, with foreign names, titles, code, formulas and addresses.
MIXED = {
    'zh': [
        '《The Lord of the Rings》的作者是谁？',
        '谁演唱了歌曲Smells Like Teen Spirit？',
        'GPT-4 和 BERT 有什么区别？',
        '他用 numpy.array(x) 计算 mean、variance 和 std。',
        '首先，Jean-Baptiste Poquelin，即 Molière，生于巴黎。',
        r'因此 $x = \frac{a+b}{2}$，所以面积是 $\pi r^2$。',
        '《残酷な天使のテーゼ》是哪部动画的主题曲？',
        '“世宗大学”的韩文名称是세종대학교，它在哪里？',
        '答案是 42。',
        '伊朗和伊拉克的首都分别是哪里？',
        '他是个好人，也是个医生。',
    ],
    'en': [
        'What does the Chinese character 道 mean in Taoism?',
        'Who painted "Las Meninas" and "La rendición de Breda"?',
        'He sang "Não quero dinheiro" in Rio de Janeiro when he was young.',
        'Москва is the capital of Russia.',
        'The answer is 42.',
        r'Solve $x^2=2$ for $x$.',
    ],
    'fr': [
        'Qui a écrit "The Great Gatsby" ?',
        'Qui a chanté « Bésame mucho » ?',
        'Que signifie "kain ayinhore" ?',
        r'On a $\int_0^1 x\,dx = \frac12$, donc le résultat est juste.',
        'La réponse est 42.',
    ],
    'es': [
        '¿Quién canta "Garota de Ipanema"?',
        '¿Dónde está Vigo?',
        'Usa `np.array` y `for i in range(10)`.',
        'El número está en https://example.com/the-answer-is-here y en <a href="there">.',
    ],
    'ru': [
        'Кто создал WikiLeaks?',
        'Кто написал роман "The Great Gatsby" и рассказ "Babylon Revisited"?',
        'Что значит украинское слово «їжа»?',
        r'Значит, $x=\sqrt{2}$ и площадь равна $S=\pi r^2$.',
    ],
    'de': ['Wer schrieb "The Great Gatsby"?', 'Die Antwort ist 42.'],
    'ja': [
        '「老人と海」を書いたのは誰ですか？',
        '国連の正式名称は？',
        'PythonのlistとTupleの違いは？',
    ],
}


def test_99_percent_of_public_texts_are_in_their_language():
    found = [
        identify_language(text) == language
        for language in TARGETS
        for kind in KINDS
        for text in SAMPLES[language, kind]
    ]
    assert len(found) == 120
    assert sum(found) >= 0.99 * len(found)


def test_at_most_1_percent_of_texts_in_related_languages_are_accepted():
    found = [
        identify_language(text) == target
        for language, target in RELATIVES
        for kind in KINDS
        for text in SAMPLES.get((language, kind), ())
        if (language, kind) not in TOO_CLOSE
    ]
    assert len(found) >= 100
    assert sum(found) <= 0.01 * len(found)


@pytest.mark.parametrize('language', MIXED)
def test_names_titles_code_and_formulas_do_not_decide(language):
    assert [text for text in MIXED[language] if identify_language(text) != language] == []


@pytest.mark.parametrize(('boilerplate', 'language'), [('en', 'zh'), ('en', 'fr'), ('zh', 'en')])
def test_boilerplate_at_both_ends_does_not_decide(boilerplate, language):
    ends = '\n'.join(texts()[boilerplate]['answers'][:3])
    text = f'{ends}\n{"".join(texts()[language]["answers"] * 2)}\n{ends}'
    assert identify_language(text) == language


def test_foreign_quotations_do_not_decide():
    quoted = '\n'.join(f'«{text}»\n' for text in texts()['en']['answers'][:4])
    assert identify_language(quoted + '\n'.join(texts()['ru']['answers'])) == 'ru'


def test_a_language_needs_more_than_half_of_the_letters():
    answers = [texts()[code]['answers'][0] for code in ('fr', 'ru', 'es')]
    assert identify_language('\n'.join(answer[:400] for answer in answers)) == 'mul'
    description = describe_language('\n'.join(answer[:400] for answer in answers))
    assert description.startswith('several languages: ')
    assert all(f'% {code}' in description for code in ('fr', 'ru', 'es'))


def test_only_code_and_formulas_are_in_no_language():
    assert identify_language('```python\nprint("hello world")\n```\n$a^2 + b^2$') == ''
    assert describe_language('`x`') == 'no letters'


def test_the_description_has_the_code_and_the_probability():
    text = texts()['zh']['answers'][0]
    assert describe_language(text).startswith('zh with confidence 1.0')


def test_other_languages_are_named():
    found = {
        text: identify_language(text)
        for text in ('Kto napisał "Pana Tadeusza"?', 'من كتب ألف ليلة وليلة؟', '누가 만들었습니까?')
    }
    assert [*found.values()] == ['pl', 'ar', 'ko']


@pytest.mark.parametrize('text', ['Half of a character: \ud83d', 'NUL \0 is a character, too.'])
def test_texts_that_fasttext_refuses_are_identified(text):
    assert identify_language(text) == 'en'


def test_threads_agree():
    samples = [text for group in SAMPLES.values() for text in group]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [*pool.map(identify_language, samples)] == [*map(identify_language, samples)]


def test_a_language_that_the_model_does_not_know_is_one_line(monkeypatch):
    klingon = dataclasses.replace(languages.LANGUAGES['en'], code='tlh')
    monkeypatch.setitem(languages.LANGUAGES, 'tlh', klingon)
    with pytest.raises(UserError, match=r"^Texts in language 'tlh' cannot be identified: "):
        identify_language('Where is it?')
