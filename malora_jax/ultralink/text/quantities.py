"""Extraction and comparison of the numbers in texts, with all possible readings of each number.

A translator may write 1,000.5 as 1.000,5, 1 000,5, 1'000.5 or in full-width digits, 50,000 as 5万
and 2 million as 2 millones; or leave the number unchanged. So nothing here depends on the language.
A number may have several readings: 1.000 may mean 1000 or 1. `number_differences` chooses the
reading that makes the texts agree. (`malora_jax.data.number_extraction` reads the last number of an
answer by the conventions of one language only.)

English number words up to twenty may become digits, as is usual in Chinese: three cups, 3 杯. Other
number words (trois, 三) and superscripts are not read. A time or date is read as several separate
numbers, so that 13:00 as a translation of 1 PM is reported as a difference. MGSM has human
translations of 250 questions. These rules report differences in 14 of them in Chinese, 3 in
Russian, 14 in French and 3 in Spanish.
"""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

# A possible reading of a match: its values in order, several if the separators separate numbers.
Reading = tuple[Decimal, ...]

# Separators within one number: no-break, narrow no-break, thin and figure spaces, and apostrophes.
# A plain space may also separate two numbers.
_HARD = "\u00a0\u202f\u2009\u2007'’"
_NUMBER = re.compile(
    r'(?:(?<![\w)\]}.])(?P<sign>[-−–－])(?:[$€£¥￥₽]\s?)?)?'
    rf'(?P<digits>(?:\d+|(?<![\w.,])(?=[.]\d))(?:[.,{_HARD}]\d+| \d{{3}}(?!\d))*)'
    r'(?:[ \u00a0\u202f]?(?P<scale>thousand|million|billion|trillion|mille|millions?|milliards?'
    r'|mil(?: millones)?|mill[oó]n(?:es)?|тыс(?:\.|яч\w*)|миллион\w*|млн|миллиард\w*|млрд'
    r'|[十百千万萬亿億]+)(?![a-zà-ÿа-яё]))?',
    re.IGNORECASE,
)
_SCALES = (
    (r'mil millones|milliards?|billion|миллиард\w*|млрд', 10**9),
    (r'millions?|mill[oó]n(?:es)?|миллион\w*|млн', 10**6),
    (r'thousand|mille|mil|тыс.*', 10**3),
    (r'trillion', 10**12),
)
_HAN = {'十': 10, '百': 100, '千': 1000, '万': 10**4, '萬': 10**4, '亿': 10**8, '億': 10**8}
_FULL_WIDTH = str.maketrans('，．', ',.')
_WORDS = (
    *('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven'),
    *('twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen'),
    'twenty',
)
_WORD = re.compile(rf'\b(?:{"|".join(_WORDS)})\b', re.IGNORECASE)


def readings(text: str) -> list[list[Reading]]:
    """Return the possible interpretations (readings) of each number in a text, in order.

    Returns:
        For each number, a list of its distinct readings. The usual reading in English comes first.
    """
    text = text.translate(_FULL_WIDTH).replace('{,}', ',')
    return [_readings(match) for match in _NUMBER.finditer(text)]


def number_differences(source: str, translation: str) -> tuple[list[str], list[str]]:
    """Compare the numbers of two texts as multisets.

    Args:
        source: English text. Its numbers are read by English conventions.
        translation: Translated text. If a number has several interpretations, such as 1000 or 1 for
            1.000, one that occurs in the source is preferred.

    Returns:
        Numbers that the translation lacks, and numbers that it adds, as decimal strings.
    """
    remaining: Counter[Decimal] = Counter(value for found in readings(source) for value in found[0])
    in_words = Counter(
        Decimal(_WORDS.index(word[0].lower()) + 1) for word in _WORD.finditer(source)
    )
    extra: Counter[Decimal] = Counter()
    # Match numbers with a single reading first; ambiguous ones choose among the remaining values.
    for candidates in sorted(readings(translation), key=len):
        chosen = next((reading for reading in candidates if not _excess(reading, remaining)), None)
        if chosen is None:
            # A reading may consist of several numbers, of which the source has only some.
            chosen = min(candidates, key=lambda reading: _excess(reading, remaining).total())
            extra += _excess(chosen, remaining)
        remaining -= Counter(chosen)
    return _format_values(remaining), _format_values(extra - in_words)


def _excess(reading: Reading, remaining: Counter[Decimal]) -> Counter[Decimal]:
    """Return the numbers that occur more often in a reading than in `remaining`.

    Args:
        reading: One interpretation of digits in the translation; it may consist of several numbers,
            as for a date.
        remaining: Numbers of the source without a counterpart in the translation so far.
    """
    return Counter(reading) - remaining


def _readings(match: re.Match[str]) -> list[Reading]:
    """Return the interpretations (readings) of a match of `_NUMBER`, with the most likely first."""
    sign = -1 if match['sign'] else 1
    found = [_signed(reading, sign) for reading in _digits(match['digits'])]
    if not match['scale']:
        return found
    scale = _scale(match['scale'])
    # Keep the unscaled readings, since a word such as 千克 (kilogram) only starts like a scale.
    scaled = [(*reading[:-1], reading[-1] * scale) for reading in found]
    return list(dict.fromkeys(scaled + found))


def _signed(reading: Reading, sign: int) -> Reading:
    return (reading[0] * sign, *reading[1:])


def _scale(word: str) -> int:
    """Return the value of a scale word, such as 1,000,000 for 'millones'."""
    if word[0] in _HAN:
        product = 1
        for letter in word:
            product *= _HAN[letter]
        return product
    return next(value for pattern, value in _SCALES if re.fullmatch(pattern, word, re.IGNORECASE))


def _digits(digits: str) -> list[Reading]:
    """Return the possible interpretations (readings) of digits with separators.

    The usual reading in English comes first: for '1.000', it is 1, and 1000 comes second.
    """
    parts, separators = re.split(r'\D', digits), re.findall(r'\D', digits)  # '.5' gives '' and '5'.
    whole: list[Reading] = [
        (value,) for point in '.,' if (value := _number(parts, separators, point)) is not None
    ]
    if ' ' in separators:
        words = [_digits(word)[0] for word in digits.split(' ')]
        return [tuple(value for word in words for value in word), *whole]
    # In dates, versions and lists such as 1,2,3, each part is a number of its own.
    return list(dict.fromkeys(whole or [tuple(Decimal(part) for part in parts if part)]))


def _number(parts: Sequence[str], separators: Sequence[str], point: str) -> Decimal | None:
    """Read digits with separators as one number.

    Args:
        parts: Digits between the separators.
        separators: Separators, one fewer than parts.
        point: Separator to read as the decimal separator; any other must group thousands.

    Returns:
        Value of the number; None if the digits are not one number, as in a date.
    """
    decimals = ''
    if separators and separators[-1] == point:
        *parts, decimals = parts
        separators = separators[:-1]
    if separators and (len(set(separators)) > 1 or separators[0] == point or not _grouped(parts)):
        return None
    return Decimal(f'{"".join(parts) or 0}.{decimals}')


def _grouped(parts: Sequence[str]) -> bool:
    """Return whether digits are grouped in threes, as by thousands separators."""
    first, *between, last = parts
    sizes = {len(part) for part in between}
    return not first.startswith('0') and len(first) <= 3 and len(last) == 3 and sizes <= {3}


def _format_values(values: Counter[Decimal]) -> list[str]:
    return [f'{value.normalize():f}' for value in values.elements()]
