"""Clean translations pass; each kind of fault is detected in each language."""

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.ultralink import translation_checks, translations
from malora_jax.ultralink.text import quantities, spans
from malora_jax.ultralink.text.language_identification import identify_language
from tests.ultralink import translated_texts

LANGUAGES = translations.target_languages()


def kinds(source: str, translation: str, language: str) -> set[str]:
    return {
        fault.kind
        for fault in translation_checks.faults(source, translation, language, identify_language)
    }


@pytest.mark.parametrize('language', LANGUAGES)
@pytest.mark.parametrize('name', translated_texts.ALL)
def test_clean_translations_have_no_fault(name, language):
    row = translated_texts.ALL[name]
    assert not translation_checks.faults(
        row.english, row.translations[language], language, identify_language
    )


@pytest.mark.parametrize('language', LANGUAGES)
@pytest.mark.parametrize(
    'name, old, new, kind',
    [
        ('maths', '150', '510', 'numbers'),  # Digits swapped.
        ('maths', '<<80000+', '<<8000+', 'numbers'),
        ('maths', '130000.50>>', '>>', 'numbers'),
        ('maths', '#### 1102', '#### 1120', 'final_answer'),
        ('maths', '#### 1102', '1102', 'final_answer'),
        ('maths', '#### 1102', '#### -1102', 'final_answer'),
        ('maths', '#### 1102', '#### 1102\n!', 'final_answer'),
        ('latex', r'\boxed{3}', r'\boxed{-3}', 'final_answer'),
        ('latex', r'\boxed{3}', r'{3}', 'final_answer'),
        ('latex', r'\frac{1}{2}', r'\frac{2}{1}', 'latex'),
        ('latex', '$x$', 'x', 'latex'),
        ('latex', '$x$', '$х$', 'latex'),  # The Cyrillic letter.
        ('code', 'return n + 2', 'return n + 1', 'code'),
        ('code', '# Two more.', '# +2.', 'code'),
        ('code', '```python\n', '```\n', 'code'),
        ('code', '```python\ndef add_two(n):\n', '', 'code'),
        ('code', 'sys.max_size', 'sys.max', 'identifiers'),
    ],
)
def test_an_injected_fault_is_caught(name, old, new, kind, language):
    row = translated_texts.ALL[name]
    broken = row.translations[language].replace(old, new, 1)
    assert broken != row.translations[language]
    assert kind in kinds(row.english, broken, language)


@pytest.mark.parametrize('language', LANGUAGES)
@pytest.mark.parametrize('name', translated_texts.ALL)
def test_another_language_is_caught(name, language):
    row = translated_texts.ALL[name]
    for other, text in {'en': row.english, **row.translations}.items():
        assert (kinds(row.english, text, language) >= {'language'}) == (other != language)


@pytest.mark.parametrize('language', LANGUAGES)
def test_a_translated_identifier_is_caught(language):
    prose = translated_texts.CODE.translations[language]
    assert kinds(
        translated_texts.CODE.english, prose.replace('add_two', 'sumar_dos'), language
    ) == {
        'identifiers',
        'code',
    }


def test_a_heading_is_no_answer():
    assert (
        translation_checks.check_final_answer(
            '#### First step\nDo it.', '#### Première étape\nFaites-le.'
        )
        == []
    )
    assert (
        translation_checks.check_final_answer(
            '#### Step\nSo:\n#### 5\n', '#### Étape\nDonc :\n#### 5'
        )
        == []
    )
    (fault,) = translation_checks.check_final_answer('#### Step\nSo:\n#### 5', '#### 5\nDonc cinq.')
    assert fault == ('final_answer', 'no last line #### 5')


@pytest.mark.parametrize('translation', ['', ' \n\t'])
def test_an_empty_translation_is_one_fault(translation):
    assert kinds(translated_texts.MATHS.english, translation, 'fr') == {'empty'}


def test_only_the_kinds_asked_for():
    found = translation_checks.faults(
        '5 apples', '6 Äpfel', 'fr', identify_language, ('latex', 'language')
    )
    assert found == []


def test_too_short_a_text_is_not_judged():
    identify = mock.Mock(return_value='de')
    assert translation_checks.check_language('OK!', 'fr', identify) == []
    identify.assert_not_called()
    (fault,) = translation_checks.check_language(
        'Das ist nun wirklich kein Französisch.', 'fr', identify
    )
    assert fault == ('language', 'de, not fr')
    # Ten Chinese characters are a sentence.
    assert translation_checks.check_language('我们今天去北京看长城。', 'zh', identify)


ADVICE = (
    'Explain in three or four sentences why leaves change their colour in autumn, and what happens '
    'to the chlorophyll in the cells of trees.'
)


@pytest.mark.parametrize(
    'reply, size',
    [
        ('Oui.', 'too short'),
        ('Yes.', 'too short'),
        ('Expliquez.', 'too short'),
        ('Voici la traduction :', 'too short'),
        ('Je ne peux pas traduire ce texte, désolé…', 'too short'),
        ('好的。', 'too short'),
        (20 * 'Pourquoi les feuilles changent de couleur. ', 'too long'),
    ],
)
def test_a_reply_that_is_no_translation_has_another_length(reply, size):
    found = translation_checks.faults(ADVICE, reply, 'fr', identify_language, ['length_ratio'])
    assert [fault.kind for fault in found] == ['length_ratio'] and size in found[0].detail


def test_a_translation_may_mark_words_as_code():
    source = 'Compare the methods groupby, aggregate, transform, resample and rolling of pandas.'
    marked = 'Compare : `groupby`, `aggregate`, `transform`, `resample` et `rolling` de `pandas`.'
    assert not translation_checks.faults(source, marked, 'fr', identify_language, ['length_ratio'])


def test_short_texts_may_have_any_length():
    assert not kinds('Thanks a lot, that was very helpful!', 'Merci !', 'fr')


def test_the_source_is_no_translation():
    text = 'Explain photosynthesis.'
    (fault,) = translation_checks.faults(text, f' {text}\n', 'fr', identify_language)
    assert fault == ('language', 'the same text as the source')
    # Names look the same in many languages.
    assert not kinds('Albert Einstein', 'Albert Einstein', 'fr')


# Numbers, written by code that shares nothing with their parser.

WAYS = {
    'en': (',', '.'),
    'es': ('.', ','),
    'fr': ('\u202f', ','),
    'ru': ('\u00a0', ','),
    'plain space': (' ', ','),
    'ungrouped': ('', '.'),
}


def written(cents: int, way: str) -> str:
    group, point = WAYS[way]
    whole = f'{abs(cents) // 100:,}'.replace(',', group)
    decimals = f'{point}{abs(cents) % 100:02}' if cents % 100 else ''
    return f'{"-" if cents < 0 else ""}{whole}{decimals}'


@settings(deadline=None)
@given(st.lists(st.integers(-(10**11), 10**11), min_size=1, max_size=6), st.sampled_from([*WAYS]))
def test_numbers_are_the_same_however_they_are_written(cents, way):
    english, other = (' ; '.join(written(n, w) for n in cents) for w in ('en', way))
    assert quantities.number_differences(english, other) == ([], [])
    # In another order, and with full-width digits.
    wide = ' ; '.join(written(n, way) for n in reversed(cents))
    digits = str.maketrans('0123456789', '０１２３４５６７８９')
    assert quantities.number_differences(english, wide.translate(digits)) == ([], [])


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10**11), min_size=1, max_size=6),
    st.sampled_from([*WAYS]),
    st.data(),
)
def test_a_changed_lost_or_added_number_is_found(cents, way, data):
    at = data.draw(st.integers(0, len(cents) - 1))
    other = data.draw(st.integers(1, 10**11))
    # 1,234 and 1.234 may be the same number, so values that differ by a factor of 1000 are
    # excluded.
    related = {cents[at] * 1000, cents[at] / 1000, cents[at]}
    english = ' ; '.join(written(n, 'en') for n in cents)
    if other not in related:
        changed = [*cents[:at], other, *cents[at + 1 :]]
        assert quantities.number_differences(
            english, ' ; '.join(written(n, way) for n in changed)
        ) != ([], [])
    lost = ' ; '.join(written(n, way) for n in [*cents[:at], *cents[at + 1 :]])
    missing, extra = quantities.number_differences(english, lost)
    assert len(missing) == 1 and not extra
    added = ' ; '.join(written(n, way) for n in [*cents, other])
    missing, extra = quantities.number_differences(english, added)
    assert not missing and len(extra) == 1


@pytest.mark.parametrize(
    'english, other',
    [
        ('50,000 people and 2 million', '5万人和200万'),
        ('1.5 billion', '15亿'),
        ('$2 million', '2 millones de dólares'),
        ('3 billion', '3 mil millones'),
        ('3 billion', '3 milliards'),
        ('2.5 million', '2,5 млн'),
        ('5 thousand', '5 тысяч'),
        ('3 kg', '3千克'),
        ('half, three cups and 1/2', '一半，3 杯和 1/2'),
        ('.5 hours', '0,5 часа'),
        ('in 2015 1,000 people', 'en 2015 1 000 personnes'),
        ('on 2024-05-01', '01.05.2024'),
        ('1, 2, 3', '1、2、3'),
        ('１,000', '1000'),
        ('x = -5', 'x = −5'),
        ('10,00,000', '10,00,000'),
    ],
)
def test_ways_to_write_numbers(english, other):
    assert quantities.number_differences(english, other) == ([], [])


@pytest.mark.parametrize(
    'english, other',
    [
        ('1.5', '15'),
        ('1.5', '1.500.000'),
        ('0.125', '125'),
        ('-5', '5'),
        ('5 million', '5 milliards'),
        ('5', '5万人,5'),
        ('3 and 3', '3'),
        ('10', 'dix'),
        ('three', '4'),
    ],
)
def test_numbers_that_differ(english, other):
    assert quantities.number_differences(english, other) != ([], [])


# Text that translators do not change.


def test_prices_are_no_latex():
    text = 'It costs $2 a piece, $3 for two, $4/$5 with $x = 2$ and $n$; en français 2 $ ou 3 $.'
    assert spans.split(text).latex == ['$x = 2$', '$n$']


def test_what_is_in_code_is_neither_latex_nor_prose():
    text = 'A `$x$` and\n~~~\n$y$ 17\n```\n~~~\nthen ```` no fence\n```sh\nopen $z$'
    found = spans.split(text)
    assert found.fences == ['~~~\n$y$ 17\n```\n~~~', '```sh\nopen $z$']
    assert found.inline == ['$x$'] and found.latex == []
    assert '17' not in found.prose and 'then' in found.prose


def test_latex_environments():
    text = r'a \begin{align*}1 &= 2\end{align*} b \(c\) d $$e' + '\n' + r'$$ f \[g\]'
    assert spans.split(text).latex == [
        r'\begin{align*}1 &= 2\end{align*}',
        r'\(c\)',
        '$$e\n$$',
        r'\[g\]',
    ]


def test_names_of_code():
    prose = 'Call str.to_upper() on myName and MAX_LEN, not on McDonald, well-known or e.g. this.'
    assert spans.identifiers(spans.split(prose)) == {'str.to_upper', 'myName', 'MAX_LEN'}


@settings(deadline=None)
@given(st.text(alphabet='`~$\\[](){}ab_1 \n.#'))
def test_any_text_keeps_itself(text):
    """An unchanged text never has a fault, whatever it contains."""
    everything = [kind for kind in translation_checks.KINDS if kind != 'language']
    assert translation_checks.faults(text, text, 'fr', identify_language, everything) == []
