"""Language identification, and conversion of Chinese to simplified characters."""

import functools
from typing import Any

from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.optional_imports import import_extra

# Maximum number of characters that are classified, half of them from each end of the text, because
# classification takes 1 µs per byte.
_MAX_CHARACTERS = 800
TRADITIONAL_CHINESE = 'zh-Hant'


def identify_language(text: str) -> str:
    """Identify the language of a text with py3langid, among `LANGUAGES` and their neighbors.

    Args:
        text: Text of any length; only its beginning and end are used if it is long.

    Returns:
        ISO 639-1 code (for some neighbors ISO 639-3); 'zh-Hant' for Chinese with mostly traditional
        characters; '' for a text without a letter.

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    if not any(map(str.isalpha, text)):
        return ''
    text = _classified_part(text)
    code, _ = _identifier().classify(text)
    return TRADITIONAL_CHINESE if code == 'zh' and _is_traditional(text) else code


def describe_language(text: str) -> str:
    """Return the code that `identify_language` gives, and its probability, for messages.

    Example:
        describe_language('Wo ist der Bahnhof?')  # 'de with confidence 0.99'

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    code = identify_language(text)
    if not code:
        return 'no letters'
    probabilities = dict(_identifier(norm_probs=True).rank(_classified_part(text)))
    return f'{code} with confidence {probabilities[code.partition("-")[0]]:.2f}'


def to_simplified(text: str) -> str:
    """Convert traditional Chinese characters to simplified ones with OpenCC's `t2s`.

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    return _converter('t2s').convert(text)


def _classified_part(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f'{text[: _MAX_CHARACTERS // 2]}\n{text[-_MAX_CHARACTERS // 2 :]}'


@functools.cache
def _identifier(norm_probs: bool = False) -> Any:
    """Return py3langid's identifier, restricted to the five languages and their neighbors.

    Args:
        norm_probs: Whether scores are probabilities, which take longer to compute.
    """
    langid = import_extra('py3langid.langid')
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs)
    near = {code for language in LANGUAGES.values() for code in language.neighbors}
    identifier.set_languages(sorted({*LANGUAGES, *near}))
    return identifier


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
