"""The prompts of dialogues, written in each language, and its turns of phrase that checks look for.

A language's file has, for each of the five stages of a dialogue, a system message with what is
required and a message of the user with advice, the document, what was said so far and the task.
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

# Of a dialogue; in the paper's order.
STAGES = (
    'initial_question',
    'initial_answer',
    'in_depth_question',
    'expansive_question',
    'following_answer',
)


class Prompts(NamedTuple):
    """The prompts of a language.

    Attributes:
        systems: the system message of each stage.
        users: that of the user.
        question, answer: what stands before a question and an answer of what was said so far.
        cites: finds words that speak of the text instead of its subject.
        refers: finds, in a question, words for something that it has not named.
        pronouns: finds pronouns that a question must not have unless it names something; None for
            a language in which names do not show.
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
        """What a model is asked.

        Args:
            stage: one of `STAGES`.
            document: that the dialogue is about.
            turns: questions and answers so far.
            question: that is to be answered.
        """
        history = '\n\n'.join(
            f'{self.question}{asked}\n{self.answer}{answered}' for asked, answered in turns
        )
        user = self.users[stage].substitute(document=document, history=history, question=question)
        return Message('system', self.systems[stage]), Message('user', user)


@functools.cache
def load(code: str) -> Prompts:
    """The prompts of a language.

    Raises:
        UserError: there is no such language.
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
    """Of all files: rows that other prompts gave are other rows."""
    texts = ''.join(_source(code) for code in sorted(LANGUAGES))
    return hashlib.sha256(texts.encode()).hexdigest()


def _source(code: str) -> str:
    file = importlib.resources.files(__package__) / f'{code}.toml'
    return file.read_text('utf-8')


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile('|'.join(f'(?:{pattern})' for pattern in patterns), re.IGNORECASE)
