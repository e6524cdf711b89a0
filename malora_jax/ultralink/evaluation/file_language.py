"""Check that a whole file is in the expected language.

Single questions are short, so that many of them together are identified.
"""

from collections.abc import Iterable

from malora_jax.errors import UserError
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.text.language_identification import describe_language, identify_language

# Fewer characters are not enough evidence to refuse a file.
_MIN_CHARACTERS = 100


def check_file_language(texts: Iterable[str], language: str, name: str) -> None:
    """Check that texts together are in a language.

    Fewer than 100 characters, and texts without letters, are not checked. Traditional Chinese
    counts as Chinese.

    Args:
        texts: Texts of the file.
        language: Code of the expected language.
        name: File and content, for messages, such as 'mgsm_fr.tsv: the problems'.

    Raises:
        UserError: The texts are in another language, which the message names.
    """
    text = '\n'.join(texts)
    if len(text) < _MIN_CHARACTERS:
        return
    found = identify_language(text).partition('-')[0]
    if found and found != language:
        wanted = LANGUAGES[language].name
        choice = f'set --language={found}, or choose' if found in LANGUAGES else 'choose'
        raise UserError(
            f'{name} are not in {wanted} ({language}): the language is '
            f'{describe_language(text)}; {choice} a file in {wanted}.'
        )
