"""Split of a file's examples by a hash of the question, so that the file may grow.

The questions of a file are ranked by a hash of the seed and the question. The first `held_out`
questions are held out, the next `validation` questions choose the checkpoint, and the others are
for training. The sizes are exact, so small files work too. New rows can only move a question toward
the end of the ranking. So a question that has been trained on is never held out later. A new
question may push the last held-out question into training; for a test set that never changes, name
a `test_file`.

All rows with the same question are in the same part, whatever their answers. A conversation of
several turns is identified by its first question.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from malora_jax.data.examples import Example, question_key
from malora_jax.data.splits import TaskProtocol, TaskSplit
from malora_jax.errors import UserError

_Groups = Mapping[str, Sequence[Example]]


class FileExamples(NamedTuple):
    """Examples that were read from a file.

    Attributes:
        examples: Examples in the order of the file; `metadata['row']` is the file and line of each.
        rows: Number of rows in the file.
        duplicates: Number of rows that were dropped because an earlier row has the same question
            and answer.
        file: Path of the file as written in the config.
    """

    examples: list[Example]
    rows: int
    duplicates: int
    file: str


def split_examples(
    task: TaskProtocol,
    file_examples: FileExamples,
    test: FileExamples | None,
    seed: int,
    max_per_task: int,
    held_out: int,
    validation: int,
) -> TaskSplit:
    """Split the examples of a task's files into training, validation and held-out examples.

    The held-out questions come from the test file; without a test file, they come from the task's
    file. Each held-out or validation question is asked once, and every answer that the file has for
    the question is accepted. At least half of the questions of the task's file must be left for
    training.

    Args:
        task: Task that the split belongs to.
        file_examples: Examples of the task's file.
        test: Examples of the task's test file, or None.
        seed: Seed of the run; each seed holds out different questions.
        max_per_task: Maximum number of training questions; 0 = all. If several rows have the same
            question, all of them are kept.
        held_out: Number of held-out questions; with a test file, the maximum number.
        validation: Number of validation questions, whose loss chooses the checkpoint.

    Returns:
        The split; its `origin` has `file`, `rows` and `dropped_duplicates`, and with a test file
        `test_file` and `test_rows`.

    Raises:
        UserError: The file has too few questions, or shares questions with its test file.
    """
    questions = _by_question(file_examples.examples)
    origin = {
        'file': file_examples.file,
        'rows': file_examples.rows,
        'dropped_duplicates': file_examples.duplicates,
    }
    order = _ranked(questions, seed)
    if test:
        test_questions = _by_question(test.examples)
        _check_leak(task.name, (file_examples.file, questions), (test.file, test_questions))
        origin |= {'test_file': test.file, 'test_rows': test.rows}
        held_out_examples = [
            _merge_answers(test_questions[key]) for key in _ranked(test_questions, seed)[:held_out]
        ]
        num_held_out = 0
    else:
        held_out_examples = [_merge_answers(questions[key]) for key in order[:held_out]]
        num_held_out = held_out
    _check_size(file_examples.file, len(order), num_held_out, validation)
    validation_examples = [
        _merge_answers(questions[key]) for key in order[num_held_out : num_held_out + validation]
    ]
    rest = order[num_held_out + validation :][: max_per_task or None]
    train = [example for key in rest for example in questions[key]]
    return TaskSplit(task, train, held_out_examples, len(order), validation_examples, origin)


def _by_question(examples: Sequence[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(question_key(example.first_question), []).append(example)
    return groups


def _ranked(questions: _Groups, seed: int) -> list[str]:
    return sorted(questions, key=lambda key: hashlib.sha256(f'{seed}/{key}'.encode()).digest())


def _merge_answers(rows: Sequence[Example]) -> Example:
    """Return the first row's example, with all right answers in `metadata['answers']`.

    All `rows` begin with the same question, apart from white space and letter case, but their later
    turns may differ. The right answers are the answers of those rows whose question and earlier
    turns are exactly those of the first row.
    """
    first = rows[0]
    same = [row for row in rows if (row.history, row.question) == (first.history, first.question)]
    answers = tuple(row.answer for row in same)
    return dataclasses.replace(first, metadata={**first.metadata, 'answers': answers})


def _check_leak(name: str, training: tuple[str, _Groups], testing: tuple[str, _Groups]) -> None:
    (path, questions), (test_path, tested) = training, testing
    shared = [key for key in tested if key in questions]
    if shared:
        test, train = tested[shared[0]][0], questions[shared[0]][0]
        raise UserError(
            f'Task {name!r}: {len(shared):,} questions of {test_path} are also in '
            f'{path}, such as {test.question[:60]!r} ({test.metadata["row"]}, '
            f'{train.metadata["row"]}): remove them from one of the two files.'
        )


def _check_size(path: str, distinct: int, held_out: int, validation: int) -> None:
    needed = 2 * (held_out + validation)
    if distinct < needed:
        held_out_text = f'data.held_out = {held_out} and ' if held_out else ''
        raise UserError(
            f'{path} has {distinct:,} distinct questions; it needs {needed:,} for {held_out_text}'
            f'data.validation = {validation}, as half of them must be left to train on.'
        )
