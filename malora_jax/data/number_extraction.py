r"""Extraction of the final number of an answer, in the languages of MGSM.

The first of these rules that finds a number decides:

1. the number right after the first '####', which ends an answer of GSM8K; whatever a model writes
   after it is another question;
2. the number soon after the last 'answer is', in any of the languages, or after the last '\boxed{':
   the first number within 80 characters on the same line, or the result if it starts a calculation
   such as '3 * 4 = 12';
3. the last number, except numbers that label lines, such as 'Step 2:' and '2. '; if there are only
   such labels, the last of them.

UltraEval and lm-evaluation-harness also take the first '####' ('strict'). Without one, UltraEval
takes what follows the last '>>' or '=', and the harness takes the last number ('flexible').

A number may contain:

- digits of any script;
- commas, apostrophes or no-break spaces between groups of three digits, such as '1,234,567', or
  commas between Indian groups, such as '12,34,567';
- a minus sign directly before the digits or before a currency sign, such as '-3' and '-$3'. After a
  letter, a digit or a closing bracket, it is not a sign: '3-4' holds the numbers 3 and 4;
- a fraction, such as '1/2' and '\frac{1}{2}';
- the Chinese and Japanese units 万 (10,000) and 亿 (100 million).

Currency and percent signs are ignored. In most languages, decimals follow a point. In
`COMMA_LANGUAGES`, decimals follow a comma or a point, and points and plain spaces may also separate
groups of three digits. There, a comma or a point before exactly three digits is such a separator,
not the start of decimals: MGSM itself writes '2,125' in Spanish, French and Russian.

Not supported: numbers in words (eighteen, 三十), million and k, mixed numbers (2 1/2), powers of
ten, dates, times, and numbers of two parts with 亿 and 万.
"""

import re
from decimal import Decimal
from typing import NamedTuple

from malora_jax.errors import unknown_name

POINT_LANGUAGES = frozenset({'bn', 'en', 'ja', 'sw', 'te', 'th', 'zh'})
COMMA_LANGUAGES = frozenset({'de', 'es', 'fr', 'ru'})


class _Patterns(NamedTuple):
    """Regular expressions for one number format.

    Each has the named groups from which `_value` computes the number, such as 'sign' and 'whole'.

    Attributes:
        number: Any number.
        ending: Number after '####'.
        after_phrase: Number soon after a phrase such as 'answer is'.
    """

    number: re.Pattern[str]
    ending: re.Pattern[str]
    after_phrase: re.Pattern[str]


# Phrases that announce the answer: those of lm-evaluation-harness for MGSM, and common variants.
# The Telugu phrase is 'answer'; with a colon, it is the heading of the whole solution.
_ANSWER_PHRASES = '|'.join(
    (
        'answer is',
        'Antwort (?:lautet|ist)',
        'respuesta (?:final |correcta )?es',
        'réponse (?:finale )?est',
        r'ответ\s?[-–—]',
        'jibu ni',
        'উত্তর হল',
        'సమాధానం(?!:)',
        'คำตอบคือ',
        '答えは',
        '答案[是为為]',
        r'\\boxed\{',
    )
)


def _patterns(separators: str, point: str) -> _Patterns:
    grouped = (
        rf'(?!0)\d{{1,3}}(?:(?P<separator>[{separators}])\d{{3}}(?:(?P=separator)\d{{3}})*'
        r'|(?:,\d\d)+,\d{3})(?!\d)'
    )
    number = (
        r'(?:(?<![\w)\]}])(?P<sign>[-−–－])(?:\\?[$€£¥￥₹₽]\s?)?)?'
        rf'(?P<whole>{grouped}|\d+|(?<![\w.])(?=\.\d))'
        rf'(?:{point}(?P<decimals>\d+))?'
        r'(?:/(?P<below>\d+))?'
        r'(?:\s?(?P<unit>[万萬亿億]))?'
    )
    return _Patterns(
        number=re.compile(number),
        # '####' before words is a Markdown heading.
        ending=re.compile(rf'(?<!#)####[^\w\n#]*?{number}'),
        after_phrase=re.compile(
            rf'(?:{_ANSWER_PHRASES})\s*+[^\d\n]{{0,80}}?{number}', re.IGNORECASE
        ),
    )


# No-break, narrow no-break and thin spaces never separate words.
_SEPARATORS = ",'’\u00a0\u202f\u2009"
_POINT = _patterns(_SEPARATORS, '[.]')
_COMMA = _patterns(_SEPARATORS + '. ', '[.,]')
_PATTERNS = dict.fromkeys(POINT_LANGUAGES, _POINT) | dict.fromkeys(COMMA_LANGUAGES, _COMMA)

_UNITS = {'万': 10**4, '萬': 10**4, '亿': 10**8, '億': 10**8}
_LINE_LABEL = re.compile(
    r'^[^\w\n]*(?:[^\W\d]+[^\S\n]?\d+\s?步?\s?[:：]|\d+[.):](?=[^\S\n]+\S))', re.MULTILINE
)
# Text between the first number of a calculation and its result, on one line.
_EQUATION = re.compile(
    r'[ \t]*[-−–+*/×÷=(][-−–+*/×÷=()\d.,$€£% \t]*=[ \t]*[$€£]?|[ \t]*=[ \t]*[$€£]?'
)
_FULL_WIDTH = str.maketrans('，．', ',.')
_LATEX_SPACE = re.compile(r'\\[,!]')
_LATEX_FRACTION = re.compile(r'\\[dt]?frac\{(\d+)\}\{(\d+)\}')


def final_number(text: str, language: str = 'en') -> Decimal | None:
    """Return the final number of a text, by the rules in the module docstring.

    Args:
        text: An answer, or only its end.
        language: Two-letter code of the language, which determines the meaning of points, commas
            and spaces in a number.

    Returns:
        The number, or None if the text has none.

    Raises:
        UserError: The language is not one of MGSM's.
    """
    if language not in _PATTERNS:
        raise unknown_name('language of numbers', language, _PATTERNS)
    patterns, text = _PATTERNS[language], _plain(text)
    match = (
        patterns.ending.search(text)
        or _announced_number(patterns, text)
        or _last(patterns.number, _LINE_LABEL.sub(' ', text))
        or _last(patterns.number, text)
    )
    return _value(match) if match else None


def _announced_number(patterns: _Patterns, text: str) -> re.Match[str] | None:
    """Return the match of the number soon after the last phrase such as 'answer is', or None.

    If a calculation starts there, the number after its last equals sign is matched instead.
    """
    match = _last(patterns.after_phrase, text)
    equation = _EQUATION.match(text, match.end()) if match else None
    return (equation and patterns.number.match(text, equation.end())) or match


def _plain(text: str) -> str:
    text = _LATEX_SPACE.sub('', text.translate(_FULL_WIDTH).replace('{,}', ','))
    return _LATEX_FRACTION.sub(r'\1/\2', text)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(text))
    return matches[-1] if matches else None


def _value(match: re.Match[str]) -> Decimal:
    # Decimal accepts digits of every script.
    digits = re.sub(r'\D', '', match['whole'])
    value = Decimal(f'{digits or 0}.{match["decimals"] or ""}')
    below = Decimal(match['below'] or 1)
    if below:
        value /= below
    value *= _UNITS.get(match['unit'], 1)
    return -value if match['sign'] else value
