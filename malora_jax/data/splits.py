"""Held-out and training examples of a task, and the best that a constant answer can do."""

from collections.abc import Sequence
from dataclasses import dataclass

from malora_jax.data.tasks import Example, Task, question_key
from malora_jax.errors import UserError

MIN_DISTINCT = 1_000


@dataclass(frozen=True)
class Split:
    """A task's examples in two parts that share no question.

    Attributes:
        task_name: the task.
        train: examples to train on.
        held_out: examples to evaluate on.
        distinct: how many distinct questions were drawn to choose from, at least `MIN_DISTINCT`.
    """

    task_name: str
    train: list[Example]
    held_out: list[Example]
    distinct: int


def split_task(task: Task, seed: int, train_examples: int, held_out: int) -> Split:
    """The first `held_out` distinct questions are held out, the next ones train.

    So the held-out questions of a seed stay the same when there are more to train on.

    Args:
        task: the task.
        seed: of the run; other seeds give other examples.
        train_examples: how many to train on, at least 1.
        held_out: how many to hold out, at least 1.

    Raises:
        UserError: the task has fewer than `MIN_DISTINCT` distinct questions, or fewer than asked
            for, or a held-out question is in training too.
    """
    if train_examples < 1 or held_out < 1:
        raise UserError(
            f'train_examples and held_out must be at least 1, not {train_examples} and {held_out}.'
        )
    examples = task.source.examples(seed, max(MIN_DISTINCT, held_out + train_examples))
    distinct = len({question_key(example.question) for example in examples})
    if distinct < max(MIN_DISTINCT, held_out + train_examples):
        raise UserError(
            f'Task {task.name!r} has {distinct:,} distinct questions; {held_out + train_examples:,}'
            f' are needed, and a task with fewer than {MIN_DISTINCT:,} does not count.'
        )
    train = examples[held_out : held_out + train_examples]
    _check_disjoint(task.name, train, examples[:held_out])
    return Split(task.name, train, examples[:held_out], distinct)


def _check_disjoint(name: str, train: Sequence[Example], held_out: Sequence[Example]) -> None:
    trained = {question_key(example.question) for example in train}
    shared = [e.question for e in held_out if question_key(e.question) in trained]
    if shared:
        raise UserError(
            f'Task {name!r}: {len(shared)} held-out questions are also in training, '
            f'such as {shared[0]!r}.'
        )


def best_constant(task: Task, held_out: Sequence[Example]) -> tuple[str, float]:
    """The answer that scores best when it is given to every held-out question.

    Args:
        task: whose scorer decides what is an exact match.
        held_out: the questions, at least one; their answers are the candidates.

    Returns:
        The answer, the first among equals, and the share of exact matches that it gets.
    """
    matches = {
        answer: sum(task.score(answer, example) == 1.0 for example in held_out)
        for answer in dict.fromkeys(example.answer for example in held_out)
    }
    answer = max(matches, key=lambda candidate: matches[candidate])
    return answer, matches[answer] / len(held_out)
