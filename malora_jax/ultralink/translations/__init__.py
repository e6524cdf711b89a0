"""Translation prompts: an instruction and a demonstration for each language and subset.

The instruction is written in the target language. The demonstration is an English text with its
translation; the translation passes all `translation_checks`.
"""

import functools
import hashlib
import importlib.resources
import tomllib
from typing import NamedTuple

from malora_jax.errors import unknown_name
from malora_jax.ultralink.llm.chat import ChatMessage

# Target languages, and subsets that are translated.
TARGET_LANGUAGES = ('zh', 'ru', 'fr', 'es')
SUBSETS = ('chat_agnostic', 'math', 'code')


class TranslationPrompt(NamedTuple):
    """The translation prompt of a language and a subset.

    Attributes:
        system: System message with the instruction.
        source, translation: English text and translation of the demonstration.
    """

    system: str
    source: str
    translation: str

    def messages(
        self, text: str, previous: tuple[str, str] | None = None
    ) -> tuple[ChatMessage, ...]:
        """Return the messages of a request: instruction, demonstration, context and text.

        Args:
            text: Text to translate.
            previous: Previous message of the conversation and its translation; None for the first
                message.
        """
        examples = [(self.source, self.translation), *([previous] if previous else [])]
        turns = [
            ChatMessage(role, turn)
            for pair in examples
            for role, turn in zip(('user', 'assistant'), pair, strict=True)
        ]
        return ChatMessage('system', self.system), *turns, ChatMessage('user', text)


@functools.cache
def load(language: str, subset: str) -> TranslationPrompt:
    """Load the translation prompt of a language and a subset.

    Raises:
        UserError: There is no prompt for the language or the subset.
    """
    if language not in TARGET_LANGUAGES:
        raise unknown_name('language of translations', language, TARGET_LANGUAGES)
    if subset not in SUBSETS:
        raise unknown_name('subset of translations', subset, SUBSETS)
    fields = tomllib.loads(_read_toml(language))[subset]
    return TranslationPrompt(*(fields[name].strip() for name in TranslationPrompt._fields))


def digest(language: str) -> str:
    """Return the SHA-256 digest of a language's prompts, in hexadecimal.

    The manifest records it, because other prompts give other rows.
    """
    return hashlib.sha256(_read_toml(language).encode()).hexdigest()


def _read_toml(language: str) -> str:
    return (importlib.resources.files(__package__) / f'{language}.toml').read_text('utf-8')
