"""Examples: a question and its answer, perhaps after earlier turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question and its answer, perhaps after earlier turns.

    For example::

        Example('What is 2 + 2?', '4', {})

    Attributes:
        question: Question of the user, without any template.
        answer: Expected answer of the model; a scorer may accept other answers too.
        metadata: Other data that the task's scorer needs.
        history: Earlier turns, each a question and its answer. Their answers are trained on too. In
            evaluation, they are given to the model as its own earlier answers.
    """

    question: str
    answer: str
    metadata: Mapping[str, Any]
    history: tuple[tuple[str, str], ...] = ()

    @property
    def first_question(self) -> str:
        """Question of the first turn."""
        return self.history[0][0] if self.history else self.question


def question_key(question: str) -> str:
    """Return a key that two questions share if they differ only in white space or letter case."""
    return ' '.join(question.split()).casefold()
