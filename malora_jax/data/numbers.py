r"""The number that an answer ends in, in the languages of MGSM.

Which number counts, the first rule that finds one:

1. the number right after the first '####': it ends an answer of GSM8K, and what a model writes
   after it is another question;
2. the number soon after the last 'answer is', in any of the languages, or the last '\boxed{': the
   first one within 80 characters on the line, or of a sum such as '3 * 4 = 12' what it comes to;
3. the last number, but for those that count lines, such as 'Step 2:' and '2. '.

UltraEval and lm-evaluation-harness also take the first '####' ('strict'). Without one, UltraEval
takes what follows the last '>>' or '=', the harness the last number ('flexible').

How it is read: digits of any script; commas, apostrophes and no-break spaces between groups of
three digits (or of the Indian 2-2-3); a minus sign that touches the number or its currency sign and
no number or bracket before it, so '3-4' holds 3 and 4; fractions such as '1/2' and '\frac{1}{2}';
Chinese and Japanese 万 and 亿. Currency and percent signs change nothing. In `COMMA_LANGUAGES`,
points and plain spaces also part groups, and decimals follow a comma, or a point if they are not
three. A comma before exactly three digits parts groups in every language: MGSM itself writes
'2,125' in Spanish, French and Russian.

Not read: numbers in words (eighteen, 三十), million and k, mixed numbers (2 1/2), powers of ten,
dates, times, and numbers of two parts with 亿 and 万.
"""

import re
from decimal import Decimal
from typing import NamedTuple

from malora_jax.errors import unknown_name

POINT_LANGUAGES = frozenset({'bn', 'en', 'ja', 'sw', 'te', 'th', 'zh'})
COMMA_LANGUAGES = frozenset({'de', 'es', 'fr', 'ru'})


class _Patterns(NamedTuple):
    """For one way of writing numbers, each with the groups that `_value` needs."""

    number: re.Pattern[str]
    ending: re.Pattern[str]
    announced: re.Pattern[str]


# What lm-evaluation-harness looks for in MGSM, and common variants. In Telugu it is 'answer', which
# with a colon heads the whole solution.
_ANNOUNCED = '|'.join(
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
        # Four of them before words are a heading of Markdown.
        ending=re.compile(rf'(?<!#)####[^\w\n#]*?{number}'),
        announced=re.compile(rf'(?:{_ANNOUNCED})\s*+[^\d\n]{{0,80}}?{number}', re.IGNORECASE),
    )


# No-break, narrow no-break and thin space never part words.
_SEPARATORS = ",'’\u00a0\u202f\u2009"
_POINT = _patterns(_SEPARATORS, '[.]')
_COMMA = _patterns(_SEPARATORS + '. ', '[.,]')
_PATTERNS = dict.fromkeys(POINT_LANGUAGES, _POINT) | dict.fromkeys(COMMA_LANGUAGES, _COMMA)

_UNITS = {'万': 10**4, '萬': 10**4, '亿': 10**8, '億': 10**8}
_LINE_LABEL = re.compile(
    r'^[^\w\n]*(?:[^\W\d]+[^\S\n]?\d+\s?步?\s?[:：]|\d+[.):](?=[^\S\n]+\S))', re.MULTILINE
)
# What may stand between the first number of a sum and its result, on one line.
_EQUATION = re.compile(
    r'[ \t]*[-−–+*/×÷=(][-−–+*/×÷=()\d.,$€£% \t]*=[ \t]*[$€£]?|[ \t]*=[ \t]*[$€£]?'
)
_FULL_WIDTH = str.maketrans('，．', ',.')
_LATEX_SPACE = re.compile(r'\\[,!]')
_LATEX_FRACTION = re.compile(r'\\[dt]?frac\{(\d+)\}\{(\d+)\}')


def final_number(text: str, language: str = 'en') -> Decimal | None:
    """The number that a text ends in, by the rules above.

    Args:
        text: an answer, whole or only its end.
        language: two letters; decides what points, commas and spaces in a number mean.

    Returns:
        The number, or None if there is none.

    Raises:
        UserError: the language is not one of MGSM's.
    """
    if language not in _PATTERNS:
        raise unknown_name('language of numbers', language, _PATTERNS)
    patterns, text = _PATTERNS[language], _plain(text)
    found = (
        patterns.ending.search(text)
        or _result(patterns, text)
        or _last(patterns.number, _LINE_LABEL.sub(' ', text))
        or _last(patterns.number, text)
    )
    return _value(found) if found else None


def _result(patterns: _Patterns, text: str) -> re.Match[str] | None:
    """The number that is announced; where a sum is, the one after its last equals sign."""
    found = _last(patterns.announced, text)
    equation = _EQUATION.match(text, found.end()) if found else None
    return (equation and patterns.number.match(text, equation.end())) or found


def _plain(text: str) -> str:
    text = _LATEX_SPACE.sub('', text.translate(_FULL_WIDTH).replace('{,}', ','))
    return _LATEX_FRACTION.sub(r'\1/\2', text)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(text))
    return matches[-1] if matches else None


def _value(match: re.Match[str]) -> Decimal:
    # Decimal reads the digits of every script.
    digits = re.sub(r'\D', '', match['whole'])
    value = Decimal(f'{digits or 0}.{match["decimals"] or ""}')
    below = Decimal(match['below'] or 1)
    if below:
        value /= below
    value *= _UNITS.get(match['unit'], 1)
    return -value if match['sign'] else value
