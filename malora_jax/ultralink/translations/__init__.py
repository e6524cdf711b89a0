"""Translation prompts: an instruction and a demonstration for each language and subset.

Both are written in the target language, and the demonstration passes all `checks`.
"""

import functools
import hashlib
import importlib.resources
import tomllib
from typing import NamedTuple

from malora_jax.errors import unknown_name
from malora_jax.ultralink.llm.chat import Message

# Target languages, and subsets that are translated.
CODES = ('zh', 'ru', 'fr', 'es')
SUBSETS = ('chat_agnostic', 'math', 'code')


class Prompt(NamedTuple):
    """The prompt of a translation.

    Attributes:
        system: System message with the instruction.
        source, translation: English text and translation of the demonstration.
    """

    system: str
    source: str
    translation: str

    def messages(self, text: str, before: tuple[str, str] | None = None) -> tuple[Message, ...]:
        """Return the messages of a request: instruction, demonstration, context and text.

        Args:
            text: Text to translate.
            before: Previous message of the conversation and its translation; None for the first
                message.
        """
        shown = [(self.source, self.translation), *([before] if before else [])]
        turns = [
            Message(role, turn)
            for pair in shown
            for role, turn in zip(('user', 'assistant'), pair, strict=True)
        ]
        return Message('system', self.system), *turns, Message('user', text)


@functools.cache
def load(language: str, subset: str) -> Prompt:
    """Load the translation prompt of a language and a subset.

    Raises:
        UserError: There is no prompt for the language or the subset.
    """
    if language not in CODES:
        raise unknown_name('language of translations', language, CODES)
    if subset not in SUBSETS:
        raise unknown_name('subset of translations', subset, SUBSETS)
    found = tomllib.loads(_source(language))[subset]
    return Prompt(*(found[name].strip() for name in Prompt._fields))


def digest(language: str) -> str:
    """Return the SHA-256 digest of a language's prompts, in hexadecimal.

    The manifest records it, because other prompts give other rows.
    """
    return hashlib.sha256(_source(language).encode()).hexdigest()


def _source(language: str) -> str:
    return (importlib.resources.files(__package__) / f'{language}.toml').read_text('utf-8')
