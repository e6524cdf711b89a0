"""Dialogue prompts, written in each language, and patterns of phrases that make a reply invalid.

A prompt set has a system message, and requirements and a task for each of the five prompts in
`PROMPT_NAMES`. The user message has the document, the requirements, advice, the history of the
dialogue and the task. All requests about a document begin with the same system message and the
document, so that providers can cache this prefix.
"""

import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from malora_jax.ultralink import prompt_sets
from malora_jax.ultralink.language_schema import PLACEHOLDERS, DialogueTexts
from malora_jax.ultralink.languages import Language, get_language
from malora_jax.ultralink.llm.chat import ChatMessage
from malora_jax.ultralink.prompt_sets import STRICT

# Kinds of request in a dialogue, in the order of the paper.
PROMPT_NAMES = tuple(PLACEHOLDERS)
# Pattern that matches nothing.
_NEVER = '(?!)'


class DialoguePrompts(NamedTuple):
    """The dialogue prompts of a language.

    Attributes:
        system_message: System message of all prompts.
        requirements: Requirements on the reply, by prompt name.
        task_templates: Template of advice, history and task, by prompt name.
        question_label, answer_label: Label before each question and each answer in the history.
        citation_pattern: Pattern of phrases that mention the document itself instead of its
            subject.
        reference_pattern: Pattern of phrases that refer to something that the question has not
            named.
        pronoun_pattern: Pattern of pronouns. A question with a pronoun is rejected unless it also
            contains a name or a number. None for a language in which capital letters do not mark
            names.
        question_marks: Characters that end a question.
    """

    system_message: str
    requirements: Mapping[str, str]
    task_templates: Mapping[str, string.Template]
    question_label: str
    answer_label: str
    citation_pattern: re.Pattern[str]
    reference_pattern: re.Pattern[str]
    pronoun_pattern: re.Pattern[str] | None
    question_marks: str

    def messages(
        self,
        prompt_name: str,
        document: str,
        turns: Sequence[tuple[str, str]] = (),
        question: str = '',
    ) -> tuple[ChatMessage, ...]:
        """Return the messages of a request.

        Args:
            prompt_name: One of `PROMPT_NAMES`.
            document: Document that the dialogue is about.
            turns: Earlier questions and answers.
            question: Question to answer; '' in a request for a question.
        """
        history = '\n\n'.join(
            f'{self.question_label}{asked}\n{self.answer_label}{answered}'
            for asked, answered in turns
        )
        task = self.task_templates[prompt_name].substitute(history=history, question=question)
        parts = (f'<document>\n{document}\n</document>', self.requirements[prompt_name], task)
        return (
            ChatMessage('system', self.system_message),
            ChatMessage('user', '\n\n'.join(parts)),
        )


def load(code: str, prompt_set: str = STRICT) -> DialoguePrompts:
    """Load the dialogue prompts of a language.

    Args:
        code: Language code.
        prompt_set: Name or path of the prompt set.

    Raises:
        UserError: There is no such language or set, or the set has no dialogue prompts.
    """
    language = get_language(code)
    texts = prompt_sets.find(language, prompt_set).dialogues
    if texts is None:
        raise prompt_sets.missing('dialogues', language, prompt_set)
    return _prompts(language, texts)


def digests(prompt_set: str = STRICT) -> dict[str, str]:
    """Return the SHA-256 digest of the dialogue prompts of each language, in hexadecimal.

    The manifest records them, because other prompts or patterns give other rows.

    Args:
        prompt_set: Name or path of the prompt set.

    Raises:
        UserError: No language has the set.
    """
    return {
        language.code: prompt_sets.digest([texts.dialogues, language.labels, language.patterns])
        for language, texts in prompt_sets.find_all(prompt_set)
        if texts.dialogues
    }


@functools.cache
def _prompts(language: Language, texts: DialogueTexts) -> DialoguePrompts:
    requests = {name: getattr(texts, name) for name in PROMPT_NAMES}
    patterns = language.patterns
    return DialoguePrompts(
        texts.system,
        {name: request.requirements.strip() for name, request in requests.items()},
        {name: string.Template(request.user.strip()) for name, request in requests.items()},
        language.labels.question,
        language.labels.answer,
        _any_of(patterns.cites),
        _any_of(patterns.refers),
        _any_of(patterns.pronouns) if patterns.pronouns else None,
        patterns.question_marks,
    )


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    any_of = '|'.join(f'(?:{pattern})' for pattern in patterns)
    return re.compile(any_of or _NEVER, re.IGNORECASE)
