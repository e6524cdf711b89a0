"""All numbers of a text, with every way in which each may be read.

A translator may write 1,000.5 as 1.000,5, 1 000,5, 1'000.5 or in full-width digits, 50,000 as 5万
and 2 million as 2 millones; or leave the number as it was. So nothing here depends on the language:
1.000 is both 1000 and 1, and `same` lets each be what makes the texts agree.
(`malora_jax.data.numbers` reads an answer's last number in the one way of its language.)

English words up to twenty may become digits, as Chinese prefers them: three cups, 3 杯. Other
numbers in words (trois, 三) are not read, nor are superscripts, and times and dates only by their
parts, so that 1 PM must not become 13:00. Of MGSM's 250 questions, translated by people, 14 have
other numbers by these rules in Chinese, 3 in Russian, 14 in French and 3 in Spanish.
"""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

# The values that one piece of text stands for; more than one where marks part numbers.
Reading = tuple[Decimal, ...]

# No-break, narrow no-break and thin space never part two numbers; a plain space may.
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
    """The numbers of a text in order.

    Returns:
        For each, how it may be read, the likeliest in English first.
    """
    text = text.translate(_FULL_WIDTH).replace('{,}', ',')
    return [_readings(match) for match in _NUMBER.finditer(text)]


def same(source: str, translation: str) -> tuple[list[str], list[str]]:
    """Compares the numbers of two texts, each as often as it occurs.

    Args:
        source: read as English has it.
        translation: each number is read as one that the source has, if it can be.

    Returns:
        Which numbers are missing in the translation, and which the source does not have.
    """
    left: Counter[Decimal] = Counter(value for found in readings(source) for value in found[0])
    in_words = Counter(
        Decimal(_WORDS.index(word[0].lower()) + 1) for word in _WORD.finditer(source)
    )
    extra: Counter[Decimal] = Counter()
    # Those that can be read in one way only leave the others what remains.
    for found in sorted(readings(translation), key=len):
        chosen = next((reading for reading in found if not _excess(reading, left)), None)
        if chosen is None:
            # Of two numbers in one piece, the source may have one.
            chosen = min(found, key=lambda reading: _excess(reading, left).total())
            extra += _excess(chosen, left)
        left -= Counter(chosen)
    return _shown(left), _shown(extra - in_words)


def _excess(reading: Reading, left: Counter[Decimal]) -> Counter[Decimal]:
    """The values of a reading that are not left."""
    return Counter(reading) - left


def _readings(match: re.Match[str]) -> list[Reading]:
    sign = -1 if match['sign'] else 1
    found = [_signed(reading, sign) for reading in _digits(match['digits'])]
    if not match['scale']:
        return found
    scale = _scale(match['scale'])
    # A word such as 千克 only begins like a scale.
    scaled = [(*reading[:-1], reading[-1] * scale) for reading in found]
    return list(dict.fromkeys(scaled + found))


def _signed(reading: Reading, sign: int) -> Reading:
    return (reading[0] * sign, *reading[1:])


def _scale(word: str) -> int:
    if word[0] in _HAN:
        product = 1
        for letter in word:
            product *= _HAN[letter]
        return product
    return next(value for pattern, value in _SCALES if re.fullmatch(pattern, word, re.IGNORECASE))


def _digits(digits: str) -> list[Reading]:
    """What digits with marks between them stand for, the English reading first."""
    parts, marks = re.split(r'\D', digits), re.findall(r'\D', digits)  # '.5' has an empty part.
    whole: list[Reading] = [
        (value,) for point in '.,' if (value := _number(parts, marks, point)) is not None
    ]
    if ' ' in marks:
        words = [_digits(word)[0] for word in digits.split(' ')]
        return [tuple(value for word in words for value in word), *whole]
    # Dates, versions and lists such as 1,2,3 are as many numbers as they have parts.
    return list(dict.fromkeys(whole or [tuple(Decimal(part) for part in parts if part)]))


def _number(parts: Sequence[str], marks: Sequence[str], point: str) -> Decimal | None:
    """One number whose decimals follow `point`, if it is one."""
    decimals = ''
    if marks and marks[-1] == point:
        *parts, decimals = parts
        marks = marks[:-1]
    if marks and (len(set(marks)) > 1 or marks[0] == point or not _grouped(parts)):
        return None
    return Decimal(f'{"".join(parts) or 0}.{decimals}')


def _grouped(parts: Sequence[str]) -> bool:
    """Whether digits are in groups of three."""
    first, *between, last = parts
    sizes = {len(part) for part in between}
    return not first.startswith('0') and len(first) <= 3 and len(last) == 3 and sizes <= {3}


def _shown(values: Counter[Decimal]) -> list[str]:
    return [f'{value.normalize():f}' for value in values.elements()]
