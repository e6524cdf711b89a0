"""Dialogue prompts, written in each language, and patterns of phrases that make a reply invalid.

The file of a language has a system message, and requirements and a task for each of the five
prompts in `PROMPT_NAMES`. The user message has the document, the requirements, advice, the history
of the dialogue and the task. All requests about a document begin with the same system message and
the document, so that providers can cache this prefix.
"""

import functools
import hashlib
import importlib.resources
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from malora_jax.ultralink.languages import LANGUAGES, get_language
from malora_jax.ultralink.llm.chat import ChatMessage

# Kinds of request in a dialogue, in the order of the paper. An in-depth question goes deeper into
# the last answer; an expansive question is about another aspect of the document.
PROMPT_NAMES = (
    'initial_question',
    'initial_answer',
    'in_depth_question',
    'expansive_question',
    'following_answer',
)


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
            contains a name or a number. None for Chinese, which has no capital letters by which
            names could be recognized.
    """

    system_message: str
    requirements: Mapping[str, str]
    task_templates: Mapping[str, string.Template]
    question_label: str
    answer_label: str
    citation_pattern: re.Pattern[str]
    reference_pattern: re.Pattern[str]
    pronoun_pattern: re.Pattern[str] | None

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


@functools.cache
def load(code: str) -> DialoguePrompts:
    """Load the dialogue prompts of a language.

    Args:
        code: Language code.

    Raises:
        UserError: There is no such language.
    """
    sections = tomllib.loads(_read_toml(get_language(code).code))
    patterns = sections['patterns']
    return DialoguePrompts(
        sections['system'],
        {stage: sections[stage]['requirements'].strip() for stage in PROMPT_NAMES},
        {stage: string.Template(sections[stage]['user'].strip()) for stage in PROMPT_NAMES},
        sections['labels']['question'],
        sections['labels']['answer'],
        _any_of(patterns['cites']),
        _any_of(patterns['refers']),
        _any_of(patterns['pronouns']) if patterns['pronouns'] else None,
    )


@functools.cache
def digest() -> str:
    """Return the SHA-256 digest of the prompts of all languages, in hexadecimal.

    The manifest records it, because other prompts give other rows.
    """
    texts = ''.join(_read_toml(code) for code in sorted(LANGUAGES))
    return hashlib.sha256(texts.encode()).hexdigest()


def _read_toml(code: str) -> str:
    file = importlib.resources.files(__package__) / f'{code}.toml'
    return file.read_text('utf-8')


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile('|'.join(f'(?:{pattern})' for pattern in patterns), re.IGNORECASE)
