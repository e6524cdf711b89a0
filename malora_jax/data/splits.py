"""Splits: the interface of tasks, and their examples for training, validation and scoring."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from malora_jax.data.examples import Example, question_key
from malora_jax.data.scoring import Scoring
from malora_jax.errors import UserError


class TaskProtocol(Protocol):
    """Interface of all tasks: `Task`, `FileTask` and `DatasetTask`.

    For example::

        task: TaskProtocol = get_task('gcd')
        split = task.split(seed=0, max_per_task=1000, held_out=100)
    """

    @property
    def name(self) -> str:
        """Name of the task in configs and results."""
        ...

    @property
    def scoring(self) -> Scoring:
        """Scoring rule of the held-out questions."""
        ...

    def split(
        self, seed: int, max_per_task: int, held_out: int, validation: int = 0
    ) -> 'TaskSplit':
        """Return the examples for training, validation and scoring.

        Args:
            seed: Seed of the run.
            max_per_task: Maximum number of training questions; 0 = all. A `Task`, which generates
                its examples, does not accept 0.
            held_out: Number of held-out questions, which are scored.
            validation: Number of validation questions, whose loss chooses the checkpoint.

        Raises:
            UserError: There are too few examples, or they cannot be read.
        """
        ...


@dataclass(frozen=True)
class TaskSplit:
    """A task's examples for training, validation and scoring.

    The parts share no question, except in public datasets, whose training and test splits are used
    as published.

    For example::

        split = get_task('gcd').split(seed=0, max_per_task=1000, held_out=100)
        len(split.train)  # 1000

    Attributes:
        task: Task that the examples belong to.
        train: Training examples; empty for a task that is only scored.
        held_out: Held-out examples, which are scored; empty for a task that is only trained on.
        num_available: Number of distinct questions, or rows of a public dataset, to choose from.
        validation: Examples whose loss chooses the checkpoint and decides on early stopping; may be
            empty.
        origin: Facts about the files or the dataset, for results; see `file_splits.split_examples`.
        published: Whether the split is the publisher's. `drop_leaked_questions` does not change
            such a split.
    """

    task: TaskProtocol
    train: Sequence[Example]
    held_out: Sequence[Example]
    num_available: int
    validation: Sequence[Example] = field(default_factory=list)
    origin: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False

    @property
    def task_name(self) -> str:
        """Name of the task."""
        return self.task.name

    def majority_baseline(self) -> tuple[str, float]:
        """Return the majority baseline: the best constant answer and its mean score."""
        return self.task.scoring.majority_baseline(self.held_out)


def drop_leaked_questions(splits: Sequence[TaskSplit]) -> list[TaskSplit]:
    """Remove held-out and validation questions of any task from the training examples of all tasks.

    This prevents leakage when two files share questions. Held-out questions of any task are also
    removed from the validation examples of all tasks. If examples were removed from a split, its
    `origin` has their number as `dropped_shared`. Published splits neither change nor affect
    others, even if training and test questions look alike.

    For example::

        splits = drop_leaked_questions([task.split(0, 1000, 100) for task in tasks])

    Raises:
        UserError: A task has no examples left to train on, or to validate on.
    """
    own = [split for split in splits if not split.published]
    held_out = {question_key(e.first_question) for s in own for e in s.held_out}
    validation = {question_key(e.first_question) for s in own for e in s.validation}
    return [s if s.published else _drop_leaked(s, held_out, validation) for s in splits]


def _drop_leaked(split: TaskSplit, held_out: set[str], validation: set[str]) -> TaskSplit:
    train = [e for e in split.train if question_key(e.first_question) not in held_out | validation]
    validation_examples = [
        e for e in split.validation if question_key(e.first_question) not in held_out
    ]
    for remaining, needed, purpose in (
        (train, True, 'train'),
        (validation_examples, split.validation, 'validate'),
    ):
        if needed and not remaining:
            raise UserError(
                f'Task {split.task_name!r} has no examples left to {purpose} on: other '
                'tasks use all of its questions.'
            )
    dropped = len(split.train) + len(split.validation) - len(train) - len(validation_examples)
    origin = {**split.origin, 'dropped_shared': dropped} if dropped else split.origin
    return dataclasses.replace(split, train=train, validation=validation_examples, origin=origin)
