"""Extraction and comparison of the numbers in texts, with all possible readings of each number.

A translator may write 1,000.5 as 1.000,5, 1 000,5, 1'000.5 or in full-width digits, 50,000 as 5万
and 2 million as 2 millones; or leave the number unchanged. So the number words of all languages are
read in every text. A number may have several readings: 1.000 may mean 1000 or 1.
`number_differences` chooses the reading that makes the texts agree.
(`malora_jax.data.number_extraction` reads the last number of an answer by the conventions of one
language only.)

English number words up to twenty may become digits, as is usual in Chinese: three cups, 3 杯. Other
number words (trois, 三) and superscripts are not read. A time or date is read as several separate
numbers, so that 13:00 as a translation of 1 PM is reported as a difference. MGSM has human
translations of 250 questions. These rules report differences in 14 of them in Chinese, 3 in
Russian, 14 in French and 3 in Spanish.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from malora_jax.ultralink.languages import LANGUAGES, Language

# A possible reading of a match: its values in order, several if the separators separate numbers.
Reading = tuple[Decimal, ...]

# Separators within one number: no-break, narrow no-break, thin and figure spaces, and apostrophes.
# A plain space may also separate two numbers.
_HARD = "\u00a0\u202f\u2009\u2007'’"
_DIGITS = (
    r'(?:(?<![\w)\]}.])(?P<sign>[-−–－])(?:[$€£¥￥₽]\s?)?)?'
    rf'(?P<digits>(?:\d+|(?<![\w.,])(?=[.]\d))(?:[.,{_HARD}]\d+| \d{{3}}(?!\d))*)'
)
_FULL_WIDTH = str.maketrans('，．', ',.')
_SOURCE_LANGUAGE = 'en'


class _NumberWords(NamedTuple):
    """Patterns and values of the number words of languages.

    Attributes:
        number: Pattern of a number: sign, digits and scale, a word or characters after the digits.
        scale_words: Pattern and value of each scale word.
        scale_characters: Value of each scale character, such as 10,000 for 万.
        word: Pattern of an English number word.
        words: English words for 1, 2, 3 and so on.
    """

    number: re.Pattern[str]
    scale_words: Sequence[tuple[re.Pattern[str], int]]
    scale_characters: dict[str, int]
    word: re.Pattern[str]
    words: Sequence[str]


def _number_words() -> _NumberWords:
    return _words_of(tuple(LANGUAGES.values()))


@functools.lru_cache(maxsize=2)
def _words_of(languages: tuple[Language, ...]) -> _NumberWords:
    """Return the number words of languages."""
    scales = [item for each in languages for item in each.numbers.scale_words.items()]
    characters = {key: n for each in languages for key, n in each.numbers.scale_characters.items()}
    # Longer patterns come first, since 'mil millones' begins with 'mil'.
    scale = '|'.join(sorted((pattern for pattern, _ in scales), key=len, reverse=True))
    words = LANGUAGES[_SOURCE_LANGUAGE].numbers.words
    return _NumberWords(
        re.compile(
            rf'{_DIGITS}(?:[ \u00a0\u202f]?(?P<scale>{scale}|[{re.escape("".join(characters))}]+)'
            r'(?![a-zà-ÿа-яё]))?',
            re.IGNORECASE,
        ),
        [(re.compile(pattern, re.IGNORECASE), value) for pattern, value in scales],
        characters,
        re.compile(rf'\b(?:{"|".join(words) or "(?!)"})\b', re.IGNORECASE),
        words,
    )


def readings(text: str) -> list[list[Reading]]:
    """Return the possible interpretations (readings) of each number in a text, in order.

    Returns:
        For each number, a list of its distinct readings. The usual reading in English comes first.
    """
    text = text.translate(_FULL_WIDTH).replace('{,}', ',')
    words = _number_words()
    return [_readings(match, words) for match in words.number.finditer(text)]


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
    english = _number_words()
    in_words = Counter(
        Decimal(english.words.index(word[0].lower()) + 1) for word in english.word.finditer(source)
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


def _readings(match: re.Match[str], words: _NumberWords) -> list[Reading]:
    """Return the interpretations (readings) of a match of a number, with the most likely first."""
    sign = -1 if match['sign'] else 1
    found = [_signed(reading, sign) for reading in _digits(match['digits'])]
    if not match['scale']:
        return found
    # Keep the unscaled readings, since a word such as 千克 (kilogram) only starts like a scale.
    scaled = [
        (*reading[:-1], reading[-1] * scale)
        for scale in _scales(match['scale'], words)
        for reading in found
    ]
    return list(dict.fromkeys(scaled + found))


def _signed(reading: Reading, sign: int) -> Reading:
    return (reading[0] * sign, *reading[1:])


def _scales(word: str, words: _NumberWords) -> list[int]:
    """Return the values of a scale word, such as 1,000,000 for 'millones'.

    A word may have several: in English, a billion has 9 zeros, in German 12. English comes first.
    """
    if word[0] in words.scale_characters:
        return [math.prod(words.scale_characters[character] for character in word)]
    return [value for pattern, value in words.scale_words if pattern.fullmatch(word)]


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
