"""Final numbers of answers: which number counts, and how it is parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data.number_extraction import COMMA_LANGUAGES, POINT_LANGUAGES, final_number
from malora_jax.errors import UserError


def read(text: str, language: str = 'en') -> str | None:
    """Return the final number in plain digits, without trailing zeros."""
    number = final_number(text, language)
    return None if number is None else f'{number.normalize():f}'


# Choice of the number.


@pytest.mark.parametrize(
    'text, number',
    [
        ('', None),
        ('eighteen', None),
        ('16 - 3 - 4 = 9, so 18 dollars for 9 eggs', '9'),
        # GSM8K's format, and text that a model writes after it.
        ('48/2 = <<48/2=24>>24 clips.\n#### 72', '72'),
        ('#### 72\n\nQuestion: How many?\nAnswer: 5\n#### 5', '72'),
        ('####72 of 80', '72'),
        ('#### $1,234', '1234'),
        ('#### -7', '-7'),
        ('#### none in 1999', '1999'),
        ('#### Step 1: add\n2 + 3 = 5', '5'),
        ('##### 4\nso 5', '5'),
        # Announced answers.
        ('The answer is 18, for 9 eggs.', '18'),
        ('The answer is: $18 per day.', '18'),
        ('The answer is 5. Wait, 3 is wrong. So the answer is\n\n**6** for 2.', '6'),
        ('The answer is 18. I hope that the answer is right.\n9', '18'),
        ('The answer is six.\n7', '7'),
        (f'The answer is {80 * "x"}5\n7', '5'),
        (f'The answer is {81 * "x"}5\n7', '7'),
        ('It is \\boxed{18} for 9 eggs', '18'),
        ('\\boxed{\\$18}, not 19', '18'),
        ('#### 4 but the answer is 5', '4'),
        # Numbers of list items and steps.
        ('She makes $18.\nStep 2: Check', '18'),
        ('She makes $18.\n**Step 2:** Check', '18'),
        ('1. She makes $18.\n2. Done', '18'),
        ('She makes\n18', '18'),
        ('2. 18', '18'),
        ('Step 2:', '2'),
        ('18. That is all', '18'),
        ('Total: 18', '18'),
    ],
)
def test_which_number(text, number):
    assert read(text) == number


@pytest.mark.parametrize(
    'language, text',
    [
        ('bn', 'উত্তর হল ১৮, ৯ টি নয়।'),
        ('de', 'Die Antwort lautet 18 für 9 Eier.'),
        ('es', 'La respuesta final es 18 por 9 huevos.'),
        ('es', 'La respuesta es 18 por 9 huevos.'),
        ('fr', 'La réponse est 18 pour 9 œufs.'),
        ('ja', '答えは18です。9個'),
        ('ru', 'Ответ — 18, а не 9.'),
        ('sw', 'Jibu ni 18, si 9.'),
        ('te', 'సమాధానం 18, 9 కాదు.'),
        ('te', 'సమాధానం: 9 * 2 = 18'),
        ('th', 'คำตอบคือ ๑๘ ไม่ใช่ 9'),
        ('zh', '答案是 18，不是9。'),
        ('zh', 'The answer is 18, not 9.'),
        ('zh', '18元\n步骤2：检查'),
        ('zh', '18元\n第2步：检查'),
    ],
)
def test_announced_in_its_language(language, text):
    assert read(text, language) == '18'


# Parsing of the number.


@pytest.mark.parametrize(
    'text, number',
    [
        ('18.', '18'),
        ('$18.00', '18'),
        ('18,', '18'),
        ('18%', '18'),
        ('**18**', '18'),
        ('18€', '18'),
        ('0.5', '0.5'),
        ('.5', '0.5'),
        ('No.5', '5'),
        ('7.25', '7.25'),
        ('2.125', '2.125'),
        ('1,234', '1234'),
        ('1,234,567.5', '1234567.5'),
        ('1,234.', '1234'),
        ('12,34,567', '1234567'),
        ('1{,}234', '1234'),
        ('1,\\!234', '1234'),
        ("1'234", '1234'),
        ('1’234’567', '1234567'),
        ('1\u00a0234', '1234'),
        ('1\u202f234', '1234'),
        ('1,2345', '2345'),
        ('3,5', '5'),
        ('0,125', '125'),
        ('1 234', '234'),
        ('-7', '-7'),
        ('\u22127', '-7'),
        ('–7', '-7'),
        ('-$7', '-7'),
        ('$-7', '-7'),
        ('x = -7', '-7'),
        ('(-7)', '-7'),
        ('3-4', '4'),
        ('3 - 4', '4'),
        ('(3)-4', '4'),
        ('$5-$10', '10'),
        ('1/2', '0.5'),
        ('-1/4', '-0.25'),
        ('\\frac{1}{2}', '0.5'),
        ('-\\dfrac{3}{4}', '-0.75'),
        ('5/0', '5'),
        ('七万', None),
    ],
)
def test_how_it_is_read(text, number):
    assert read(text) == number


@pytest.mark.parametrize(
    'text, number',
    [
        ('7万', '70000'),
        ('共11.42万元', '114200'),
        ('3亿', '300000000'),
        ('１８', '18'),
        ('１，２３４．５', '1234.5'),
        ('－７', '-7'),
        ('卖了120，剩18', '18'),
        ('是18元', '18'),
    ],
)
def test_chinese(text, number):
    assert read(text, 'zh') == number


@pytest.mark.parametrize('language', sorted(COMMA_LANGUAGES))
@pytest.mark.parametrize(
    'text, number',
    [
        ('1.234', '1234'),
        ('1 234', '1234'),
        ('1\u202f234\u202f567', '1234567'),
        ('1.234,5', '1234.5'),
        ('1 234,50 $', '1234.5'),
        ('1,234.5', '1234.5'),
        ('2,125', '2125'),
        ('3,5', '3.5'),
        ('3.5', '3.5'),
        ('0,125', '0.125'),
        ('0.125', '0.125'),
        ('2.1255', '2.1255'),
        ('1.234.567', '1234567'),
        ('1.234 567', '567'),
        ('12 34', '34'),
    ],
)
def test_languages_with_a_decimal_comma(language, text, number):
    assert read(text, language) == number


@pytest.mark.parametrize('zero, language', [('০', 'bn'), ('๐', 'th'), ('౦', 'te'), ('٠', 'en')])
def test_digits_of_other_scripts(zero, language):
    digits = str.maketrans({str(i): chr(ord(zero) + i) for i in range(10)})
    assert read('1,234.5'.translate(digits), language) == '1234.5'


numbers = st.decimals(-(10**12), 10**12, places=2)


@given(numbers, st.sampled_from(sorted(POINT_LANGUAGES)), st.sampled_from(',\u00a0\u202f\u2009'))
def test_numbers_with_a_decimal_point_come_back(number, language, separator):
    written = f'{number:,.2f}'.replace(',', separator)
    assert final_number(f'So {written}.', language) == number


@given(numbers, st.sampled_from(sorted(COMMA_LANGUAGES)), st.sampled_from('. \u00a0\u202f\u2009'))
def test_numbers_with_a_decimal_comma_come_back(number, language, separator):
    written = f'{number:,.2f}'.translate({ord(','): separator, ord('.'): ','})
    assert final_number(f'So {written}.', language) == number


@given(st.text(), st.sampled_from(sorted(POINT_LANGUAGES | COMMA_LANGUAGES)))
def test_every_text_is_read(text, language):
    number = final_number(text, language)
    assert number is None or number.is_finite()


def test_an_unknown_language():
    with pytest.raises(UserError, match=r"Unknown language of numbers 'fre': did you mean fr?"):
        final_number('18', 'fre')


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('The answer is 3*4 = 12', 12),
        ('The final answer is 20 - 5 = 15.', 15),
        ('The answer is $1,200 / 4 = $300, as 300 * 4 = 1200', 300),
        ('The answer is 2 + 2 = 1 + 3 = 4', 4),
        ('The answer is 7. 3 + 4 = 8 is wrong', 7),
        ('The answer is 7\n= 9', 7),
        ('The answer is 5 = five', 5),
        ('The answer is 6 apples = 2 bags', 6),
    ],
)
def test_of_a_sum_the_result_counts(text, number):
    assert final_number(text) == number
