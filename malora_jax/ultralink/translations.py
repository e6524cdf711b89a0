"""Translation prompts: an instruction and a demonstration for each language and subset.

The instruction is written in the target language. The demonstration is an English text with its
translation; the translation passes all `translation_checks`.
"""

from typing import NamedTuple

from malora_jax.errors import unknown_name
from malora_jax.ultralink import prompt_sets
from malora_jax.ultralink.language_schema import Demonstration
from malora_jax.ultralink.languages import LANGUAGES, get_language
from malora_jax.ultralink.llm.chat import ChatMessage
from malora_jax.ultralink.prompt_sets import STRICT

SOURCE_LANGUAGE = 'en'
# Subsets that are translated.
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


def target_languages() -> tuple[str, ...]:
    """Return the codes of the languages into which conversations can be translated."""
    return tuple(
        code
        for code, language in LANGUAGES.items()
        if language.demonstrations and code != SOURCE_LANGUAGE
    )


def load(code: str, subset: str, prompt_set: str = STRICT) -> TranslationPrompt:
    """Load the translation prompt of a language and a subset.

    Args:
        code: Code of the target language.
        subset: One of `SUBSETS`.
        prompt_set: Name or path of the prompt set.

    Raises:
        UserError: There is no prompt for the language, the subset or the set.
    """
    if code not in target_languages():
        raise unknown_name('language of translations', code, target_languages())
    if subset not in SUBSETS:
        raise unknown_name('subset of translations', subset, SUBSETS)
    language = get_language(code)
    texts = prompt_sets.find(language, prompt_set).translation
    if texts is None:
        raise prompt_sets.missing('translation', language, prompt_set)
    demonstration: Demonstration = getattr(language.demonstrations, subset)
    fields = (getattr(texts, subset), demonstration.source, demonstration.translation)
    return TranslationPrompt(*map(str.strip, fields))


def digest(code: str, prompt_set: str = STRICT) -> str:
    """Return the SHA-256 digest of a language's prompts, in hexadecimal.

    The manifest records it, because other prompts or number words give other rows.
    """
    prompts = [load(code, subset, prompt_set) for subset in SUBSETS]
    return prompt_sets.digest([prompts, get_language(code).numbers])
