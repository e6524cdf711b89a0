"""Pairs of a judged answer and the baseline's answer to the same question."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import question_files
from malora_jax.ultralink.evaluation.question_files import question_key
from malora_jax.ultralink.shards import text_field
from malora_jax.ultralink.stage import StageRun


class AnswerPair(NamedTuple):
    """Two answers to a question.

    Attributes:
        id: Id of the judged row.
        question: Text of the question.
        answer: Judged answer.
        baseline_answer: The baseline's answer.
    """

    id: str
    question: str
    answer: str
    baseline_answer: str

    def ordered(self, answer_first: bool) -> tuple[str, str]:
        """Return both answers, in the order in which the judge sees them."""
        pair = self.answer, self.baseline_answer
        return pair if answer_first else pair[::-1]


def open_baseline(run: StageRun[Any], baseline: pathlib.Path) -> Callable[[Row], AnswerPair]:
    """Read the baseline's answers, and return the function that pairs a judged row with its answer.

    If the rows of the baseline have questions, the answer belongs to the same question, and the
    second answer to a repeated question belongs to its second occurrence. So neither the order of
    the rows nor other questions in the baseline matter. Otherwise, the answer belongs to the same
    id.

    Raises:
        UserError: A file cannot be read, a row lacks a field, two rows have the same id, or the
            baseline has no answer to a selected row.
    """
    answers = {
        _baseline_key(row): text_field(row, 'answer') for row in question_files.read([baseline])
    }
    by_question = any(isinstance(key, tuple) for key in answers)

    def key(row: Row) -> Any:
        return question_key(row) if by_question else text_field(row, 'id')

    def read_pair(row: Row) -> AnswerPair:
        identifier, question = text_field(row, 'id'), text_field(row, 'question')
        return AnswerPair(identifier, question, text_field(row, 'answer'), answers[key(row)])

    selected = list(run.selection.select(question_files.read(run.inputs), run.seed))
    missing = [row for row in selected if key(row) not in answers]
    if missing:
        first = f'{text_field(missing[0], "id")!r} ({text_field(missing[0], "question")[:60]!r})'
        lacks = f'{first}, in total to {len(missing):,} of {len(selected):,} questions'
        if len(missing) == len(selected) > 1:
            lacks = f'any of the {len(selected):,} questions, such as {first}'
        raise UserError(
            f'{missing[0].location}: {baseline} has no answer to {lacks}: choose a baseline with '
            'the same questions, in the same language.'
        )
    return read_pair


def _baseline_key(row: Row) -> Any:
    return question_key(row) if 'question' in row.fields else text_field(row, 'id')
