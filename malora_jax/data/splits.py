"""Held-out and training examples of a task, and the best that a constant answer can do."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from malora_jax.data.tasks import Example, Scored, Task, question_key
from malora_jax.errors import UserError

MIN_DISTINCT = 1_000
# Answers that are tried as constants, and how often they are scored in all: more cost only time.
MAX_CONSTANTS = 200
_MAX_SCORES = 20_000


@dataclass(frozen=True)
class Split:
    """A task's examples in parts that share no question; those of public datasets are as published.

    Attributes:
        task: the task.
        train: examples to train on; empty for a task that is only scored.
        held_out: examples to score; empty for a task that is only trained on.
        distinct: how many distinct questions, or rows of a public dataset, there were to choose
            from.
        validation: examples to choose a checkpoint by; may be empty.
        origin: for examples from a file, what is to be known of it; see `file_splits.split_file`.
    """

    task: Scored
    train: Sequence[Example]
    held_out: Sequence[Example]
    distinct: int
    validation: Sequence[Example] = field(default_factory=list)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_name(self) -> str:
        """The task's name."""
        return self.task.name

    def constant(self) -> tuple[str, float]:
        """The best that one answer to all held-out questions would do: the answer, its mean score.

        Of options, it is always the one in the same place; a program cannot be constant.
        """
        if self.task.scoring.rule == 'code':
            return '', 0.0
        if self.task.scoring.rule != 'likelihood':
            return best_constant(self.task, self.held_out)
        labels = collections.Counter(example.metadata['label'] for example in self.held_out)
        label, count = labels.most_common(1)[0]
        return f'option {label + 1}', count / len(self.held_out)


def split_task(
    task: Task, seed: int, max_per_task: int, held_out: int, validation: int = 0
) -> Split:
    """The first `held_out` distinct questions are held out, the next `validation`, the rest trains.

    So the held-out questions of a seed stay the same when there are more to train on.

    Args:
        task: the task.
        seed: of the run; other seeds give other examples.
        max_per_task: how many to train on, at least 1.
        held_out: how many to hold out, at least 1.
        validation: how many to keep for choosing a checkpoint.

    Raises:
        UserError: the task has fewer than `MIN_DISTINCT` distinct questions, or fewer than asked
            for, or a question that is kept is in training too.
    """
    if max_per_task < 1 or held_out < 1 or validation < 0:
        raise UserError(
            'max_per_task and held_out must be at least 1 and validation at least 0, not '
            f'{max_per_task}, {held_out} and {validation}.'
        )
    kept = held_out + validation
    needed = max(MIN_DISTINCT, kept + max_per_task)
    examples = task.source.examples(seed, needed)
    distinct = len({question_key(example.question) for example in examples})
    if distinct < needed:
        raise UserError(
            f'Task {task.name!r} has {distinct:,} distinct questions; {kept + max_per_task:,}'
            f' are needed, and a task with fewer than {MIN_DISTINCT:,} does not count.'
        )
    train = examples[kept : kept + max_per_task]
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
        task: whose scorer decides what an answer is worth.
        held_out: the questions, at least one; their most frequent answers, up to
            `MAX_CONSTANTS` and fewer of many questions, are the candidates.

    Returns:
        The answer, the first among equals, and the mean score that it gets.
    """
    answers = collections.Counter(example.answer for example in held_out)
    candidates = min(MAX_CONSTANTS, 1 + _MAX_SCORES // len(held_out))
    scores = {
        answer: sum(task.score(answer, example) for example in held_out)
        for answer, _ in answers.most_common(candidates)
    }
    answer = max(scores, key=lambda candidate: scores[candidate])
    return answer, scores[answer] / len(held_out)
