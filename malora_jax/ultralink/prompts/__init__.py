"""Dialogue prompts, written in each language, and patterns of the phrases that checks look for.

The file of a language has a system message and a user message for each of five stages: the kinds of
request in a dialogue. The system message gives the requirements. The user message has advice, the
document, the history of the dialogue and the task.
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
from malora_jax.ultralink.llm.chat import Message

# Kinds of request in a dialogue, in the order of the paper.
STAGES = (
    'initial_question',
    'initial_answer',
    'in_depth_question',
    'expansive_question',
    'following_answer',
)


class Prompts(NamedTuple):
    """The dialogue prompts of a language.

    Attributes:
        systems: System message, by stage.
        users: Template of the user message, by stage.
        question, answer: Label before each question and each answer in the history.
        cites: Pattern of phrases that mention the document itself instead of its subject.
        refers: Pattern of phrases that refer to something that the question has not named.
        pronouns: Pattern of pronouns that a question must not have unless it names something; None
            for a language in which names cannot be recognized.
    """

    systems: Mapping[str, str]
    users: Mapping[str, string.Template]
    question: str
    answer: str
    cites: re.Pattern[str]
    refers: re.Pattern[str]
    pronouns: re.Pattern[str] | None

    def messages(
        self,
        stage: str,
        document: str,
        turns: Sequence[tuple[str, str]] = (),
        question: str = '',
    ) -> tuple[Message, ...]:
        """Return the messages of a request.

        Args:
            stage: Kind of request, one of `STAGES`.
            document: Document that the dialogue is about.
            turns: Earlier questions and answers.
            question: Question to answer; '' in a stage that asks for a question.
        """
        history = '\n\n'.join(
            f'{self.question}{asked}\n{self.answer}{answered}' for asked, answered in turns
        )
        user = self.users[stage].substitute(document=document, history=history, question=question)
        return Message('system', self.systems[stage]), Message('user', user)


@functools.cache
def load(code: str) -> Prompts:
    """Load the dialogue prompts of a language.

    Args:
        code: Language code.

    Raises:
        UserError: There is no such language.
    """
    found = tomllib.loads(_source(get_language(code).code))
    patterns = found['patterns']
    return Prompts(
        {stage: found[stage]['system'].strip() for stage in STAGES},
        {stage: string.Template(found[stage]['user'].strip()) for stage in STAGES},
        found['labels']['question'],
        found['labels']['answer'],
        _any_of(patterns['cites']),
        _any_of(patterns['refers']),
        _any_of(patterns['pronouns']) if patterns['pronouns'] else None,
    )


@functools.cache
def digest() -> str:
    """Return the SHA-256 digest of the prompts of all languages, in hexadecimal.

    The manifest records it, because other prompts give other rows.
    """
    texts = ''.join(_source(code) for code in sorted(LANGUAGES))
    return hashlib.sha256(texts.encode()).hexdigest()


def _source(code: str) -> str:
    file = importlib.resources.files(__package__) / f'{code}.toml'
    return file.read_text('utf-8')


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile('|'.join(f'(?:{pattern})' for pattern in patterns), re.IGNORECASE)
