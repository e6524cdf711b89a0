"""The split of a file's examples: by a hash of the question, so that files may grow.

The questions of a file are ranked by a hash of the seed and the question. The first `held_out` are
held out, the next `validation` choose the checkpoint, the rest trains. Sizes are exact, so small
files work; and a question's rank can only rise when rows are added, so that one which has been
trained on is never held out later. A new question may push the last held-out one into training:
for a test set that stays the same for good, name a `test_file`.

All rows with one question are on the same side, whatever their answers; of several turns, the first
question counts.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from malora_jax.data.file_tasks import FileTask, read_examples
from malora_jax.data.splits import Split
from malora_jax.data.tasks import Example, question_key
from malora_jax.errors import UserError

_Groups = Mapping[str, Sequence[Example]]


def split_file(
    task: FileTask, seed: int, max_per_task: int, held_out: int, validation: int = 0
) -> Split:
    """Reads a task's file, or its two, and splits it.

    A kept question is asked once; each answer that the file has to it is right. At least as many
    questions train as are kept from the file.

    Args:
        task: the task.
        seed: of the run; other seeds hold out other questions.
        max_per_task: at most how many questions to train on, with all their rows; 0 = all.
        held_out: how many questions to hold out; of a `test_file`, at most how many to use.
        validation: how many questions to keep for choosing a checkpoint.

    Returns:
        The split; its `origin` has `file`, `rows` and `dropped_duplicates`, and with a test file
        `test_file` and `test_rows`.

    Raises:
        UserError: a file is broken, too small, or shares questions with its test file.
    """
    read = read_examples(task, task.path)
    questions = _by_question(read.examples)
    origin = {'file': task.path, 'rows': read.rows, 'dropped_duplicates': read.duplicates}
    order = _ranked(questions, seed)
    if task.test_file:
        test = read_examples(task, task.test_file)
        tested = _by_question(test.examples)
        _check_leak(task, questions, tested)
        origin |= {'test_file': task.test_file, 'test_rows': test.rows}
        held = [_asked(tested[key]) for key in _ranked(tested, seed)[:held_out]]
        kept = 0
    else:
        held = [_asked(questions[key]) for key in order[:held_out]]
        kept = held_out
    _check_size(task, len(order), kept, validation)
    chosen = [_asked(questions[key]) for key in order[kept : kept + validation]]
    rest = order[kept + validation :][: max_per_task or None]
    train = [example for key in rest for example in questions[key]]
    return Split(task, train, held, len(order), chosen, origin)


def without_kept_questions(splits: Sequence[Split]) -> list[Split]:
    """Takes the questions that any task keeps out of the training of all tasks.

    Likewise those that any task holds out are taken out of the validation of all tasks. Two files
    may share questions; `origin` then says how many examples were left out, as `dropped_shared`.

    Raises:
        UserError: a task has nothing left to train on, or to validate on.
    """
    held_out = {question_key(e.opening) for s in splits for e in s.held_out}
    validation = {question_key(e.opening) for s in splits for e in s.validation}
    return [_without(split, held_out, validation) for split in splits]


def _without(split: Split, held_out: set[str], validation: set[str]) -> Split:
    train = [e for e in split.train if question_key(e.opening) not in held_out | validation]
    chosen = [e for e in split.validation if question_key(e.opening) not in held_out]
    for kept, given, purpose in ((train, True, 'train'), (chosen, split.validation, 'validate')):
        if given and not kept:
            raise UserError(
                f'Task {split.task_name!r} has nothing to {purpose} on: all its questions for that '
                'are held out in another task.'
            )
    dropped = len(split.train) + len(split.validation) - len(train) - len(chosen)
    origin = {**split.origin, 'dropped_shared': dropped} if dropped else split.origin
    return dataclasses.replace(split, train=train, validation=chosen, origin=origin)


def _by_question(examples: Sequence[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(question_key(example.opening), []).append(example)
    return groups


def _ranked(questions: _Groups, seed: int) -> list[str]:
    return sorted(questions, key=lambda key: hashlib.sha256(f'{seed}/{key}'.encode()).digest())


def _asked(rows: Sequence[Example]) -> Example:
    """The first row's question with the answers of all rows that ask just this."""
    first = rows[0]
    same = [row for row in rows if (row.earlier, row.question) == (first.earlier, first.question)]
    answers = tuple(row.answer for row in same)
    return dataclasses.replace(first, metadata={**first.metadata, 'answers': answers})


def _check_leak(task: FileTask, questions: _Groups, tested: _Groups) -> None:
    shared = [key for key in tested if key in questions]
    if shared:
        test, train = tested[shared[0]][0], questions[shared[0]][0]
        raise UserError(
            f'Task {task.name!r}: {len(shared):,} questions of {task.test_file} are also in '
            f'{task.path}, such as {test.question[:60]!r} ({test.metadata["row"]}, '
            f'{train.metadata["row"]}): take them out of one of the two.'
        )


def _check_size(task: FileTask, distinct: int, held_out: int, validation: int) -> None:
    needed = 2 * (held_out + validation)
    if distinct < needed:
        kept = f'data.held_out = {held_out} and ' if held_out else ''
        raise UserError(
            f'{task.path} has {distinct:,} distinct questions; it needs {needed:,} for {kept}'
            f'data.validation = {validation}, as half of them must be left to train on.'
        )
