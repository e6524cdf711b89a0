"""Held-out and training examples of a task, and the best that a constant answer can do."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from malora_jax.data.tasks import Example, Scored, Task, question_key
from malora_jax.errors import UserError

MIN_DISTINCT = 1_000
# Answers that are tried as constants; more would only cost time.
MAX_CONSTANTS = 200


@dataclass(frozen=True)
class Split:
    """A task's examples in parts that share no question.

    Attributes:
        task: the task.
        train: examples to train on.
        held_out: examples to score.
        distinct: how many distinct questions there were to choose from.
        validation: examples to choose a checkpoint by; may be empty.
        origin: for examples from a file, what is to be known of it; see `file_splits.split_file`.
    """

    task: Scored
    train: list[Example]
    held_out: list[Example]
    distinct: int
    validation: list[Example] = field(default_factory=list)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_name(self) -> str:
        """The task's name."""
        return self.task.name


def split_task(
    task: Task, seed: int, train_examples: int, held_out: int, validation: int = 0
) -> Split:
    """The first `held_out` distinct questions are held out, the next `validation`, the rest trains.

    So the held-out questions of a seed stay the same when there are more to train on.

    Args:
        task: the task.
        seed: of the run; other seeds give other examples.
        train_examples: how many to train on, at least 1.
        held_out: how many to hold out, at least 1.
        validation: how many to keep for choosing a checkpoint.

    Raises:
        UserError: the task has fewer than `MIN_DISTINCT` distinct questions, or fewer than asked
            for, or a question that is kept is in training too.
    """
    if train_examples < 1 or held_out < 1 or validation < 0:
        raise UserError(
            'train_examples and held_out must be at least 1 and validation at least 0, not '
            f'{train_examples}, {held_out} and {validation}.'
        )
    kept = held_out + validation
    needed = max(MIN_DISTINCT, kept + train_examples)
    examples = task.source.examples(seed, needed)
    distinct = len({question_key(example.question) for example in examples})
    if distinct < needed:
        raise UserError(
            f'Task {task.name!r} has {distinct:,} distinct questions; {kept + train_examples:,}'
            f' are needed, and a task with fewer than {MIN_DISTINCT:,} does not count.'
        )
    train = examples[kept : kept + train_examples]
    split = Split(task, train, examples[:held_out], distinct, examples[held_out:kept])
    _check_disjoint(task.name, split.held_out, [*train, *split.validation])
    _check_disjoint(task.name, split.validation, train)
    return split


def _check_disjoint(name: str, kept: Sequence[Example], others: Sequence[Example]) -> None:
    seen = {question_key(example.question) for example in others}
    shared = [e.question for e in kept if question_key(e.question) in seen]
    if shared:
        raise UserError(
            f'Task {name!r}: {len(shared)} held-out questions are also in training, '
            f'such as {shared[0]!r}.'
        )


def best_constant(task: Scored, held_out: Sequence[Example]) -> tuple[str, float]:
    """The answer that scores best when it is given to every held-out question.

    Args:
        task: whose scorer decides what is an exact match.
        held_out: the questions, at least one; their most frequent answers, up to
            `MAX_CONSTANTS`, are the candidates.

    Returns:
        The answer, the first among equals, and the share of exact matches that it gets.
    """
    answers = collections.Counter(example.answer for example in held_out)
    matches = {
        answer: sum(task.score(answer, example) == 1.0 for example in held_out)
        for answer, _ in answers.most_common(MAX_CONSTANTS)
    }
    answer = max(matches, key=lambda candidate: matches[candidate])
    return answer, matches[answer] / len(held_out)
