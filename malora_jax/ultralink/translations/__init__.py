"""The prompts of translations: an instruction and a demonstration for each language and subset.

Both are written in the language; the demonstration keeps all that `checks` looks for.
"""

import functools
import hashlib
import importlib.resources
import tomllib
from typing import NamedTuple

from malora_jax.errors import unknown_name
from malora_jax.ultralink.llm.chat import Message

# Into which languages, and of which subsets.
CODES = ('zh', 'ru', 'fr', 'es')
SUBSETS = ('chat_agnostic', 'math', 'code')


class Prompt(NamedTuple):
    """How a text is asked to be translated.

    Attributes:
        system: what is required.
        source, translation: the demonstration.
    """

    system: str
    source: str
    translation: str

    def messages(self, text: str, before: tuple[str, str] | None = None) -> tuple[Message, ...]:
        """What a model is asked.

        Args:
            text: that is to be translated.
            before: the text that precedes it in its conversation, and its translation.
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
    """The prompt for a language and a subset.

    Raises:
        UserError: there is none.
    """
    if language not in CODES:
        raise unknown_name('language of translations', language, CODES)
    if subset not in SUBSETS:
        raise unknown_name('subset of translations', subset, SUBSETS)
    found = tomllib.loads(_source(language))[subset]
    return Prompt(*(found[name].strip() for name in Prompt._fields))


def digest(language: str) -> str:
    """Of a language's prompts: rows that other prompts gave are other rows."""
    return hashlib.sha256(_source(language).encode()).hexdigest()


def _source(language: str) -> str:
    return (importlib.resources.files(__package__) / f'{language}.toml').read_text('utf-8')
