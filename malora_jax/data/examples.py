"""Examples: a question and its answer, perhaps after earlier turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question and its answer, perhaps after earlier turns.

    Attributes:
        question: Question of the user, without any template.
        answer: Answer that the model should give; a scorer may count other answers as right too.
        metadata: Whatever the task's scorer needs besides the answer.
        earlier: Earlier turns, each a question and its answer. Training learns these answers too.
            When the question is put to a model, they are the model's own earlier answers.
    """

    question: str
    answer: str
    metadata: Mapping[str, Any]
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def opening(self) -> str:
        """Question of the first turn."""
        return self.earlier[0][0] if self.earlier else self.question


def question_key(question: str) -> str:
    """Return a key that questions share if they differ only in white space or case."""
    return ' '.join(question.split()).casefold()
