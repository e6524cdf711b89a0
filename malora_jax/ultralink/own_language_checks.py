"""Checks of a user's language file that take a second, or need the models of other modules.

The built-in files do not need them, because tests check these files.
"""

from collections.abc import Iterator

from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink import translation_checks, translations
from malora_jax.ultralink.language_schema import named_patterns
from malora_jax.ultralink.languages import Language
from malora_jax.ultralink.text import pattern_trial
from malora_jax.ultralink.text.language_identification import identify_language, known_languages

# Number of characters of the texts on which patterns are tried, about those of a long answer.
_TRIAL_CHARACTERS = 2000


def check(language: Language) -> None:
    """Check the codes and the patterns of a user's language.

    Raises:
        UserError: Language identification does not know the code of the language or of a neighbor,
            or a pattern takes too long.
    """
    for field, code in _codes(language):
        if code not in known_languages():
            error = unknown_name('language of the model lid.176', code, known_languages())
            raise UserError(f'{language.path}: {field}: {error}')
    _check_pattern_times(language)


def check_demonstrations(language: Language) -> None:
    """Check the demonstrations of a user's language, if it has any.

    Args:
        language: Language that has been added, because the checks use its number words.

    Raises:
        UserError: A demonstration does not pass the checks of translations.
    """
    for subset in translations.SUBSETS if language.demonstrations else ():
        demonstration = getattr(language.demonstrations, subset)
        faults = translation_checks.faults(
            demonstration.source, demonstration.translation, language.code, identify_language
        )
        for kind, detail in faults:
            raise UserError(
                f'{language.path}: demonstrations.{subset}.translation does not pass the check of '
                f'{kind.replace("_", " ")}: {detail}.'
            )


def _codes(language: Language) -> Iterator[tuple[str, str]]:
    """Yield each field with a language code, and the code."""
    yield 'code', language.code
    for number, code in enumerate(language.neighbors):
        yield f'neighbors[{number}]', code


def _check_pattern_times(language: Language) -> None:
    named = list(named_patterns(language))
    patterns = [pattern for _, pattern in named]
    slow = pattern_trial.find_slow_pattern(patterns, _trial_texts(language))
    if slow is not None:
        raise UserError(
            f'{language.path}: {named[slow][0]} is {patterns[slow]!r}, which takes more than '
            f'{pattern_trial.SECONDS:.0f} second in a text of {_TRIAL_CHARACTERS:,} characters: '
            'avoid repetitions of repetitions, such as (a+ ?)+.'
        )


def _trial_texts(language: Language) -> list[str]:
    """Return long texts, most of which repeat a word or a character.

    Each ends with a character that no pattern expects, because failures take the longest.
    """
    name = language.native_name
    parts = (language.lead_in, f'{language.lead_in} ', f'{name} ', name[0], f'{name[0]} ', '1', ' ')
    return [part * (_TRIAL_CHARACTERS // len(part)) + '\0' for part in parts]
