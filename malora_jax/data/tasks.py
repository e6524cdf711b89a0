"""Tasks by name: where the examples come from and how an answer is scored.

A new task is one short block::

    class Squares:
        def examples(self, seed, count):
            rng = random.Random(seed)
            numbers = (rng.randrange(10**6) for _ in range(20 * count))
            draws = (Example(f'What is {n} squared?', str(n * n), {}) for n in numbers)
            return take_distinct('squares', draws, count)

    register(Task('squares', Squares(), exact_match))
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from malora_jax.data.examples import Example, question_key
from malora_jax.data.scorers import exact_match
from malora_jax.data.scoring import GeneratedScoring
from malora_jax.data.splits import Split, TaskProtocol
from malora_jax.errors import UserError, unknown_name

MIN_DISTINCT = 1_000


class Source(Protocol):
    """Anything that makes examples."""

    def examples(self, seed: int, count: int) -> list[Example]:
        """Return `count` examples with distinct questions, in an order that only the seed decides.

        Raises:
            UserError: There are fewer; `take_distinct` checks this.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A named source of examples and its scorer.

    Attributes:
        name: Name of the task in configs and results.
        source: Makes the examples.
        score: Scorer; score(prediction, example) is in [0, 1], and 1.0 for a right answer only.
        metric: Name of the mean score in results.
    """

    name: str
    source: Source
    score: Callable[[str, Example], float] = exact_match
    metric: str = 'exact_match'

    @property
    def scoring(self) -> GeneratedScoring:
        """A generated answer, in the run's template."""
        return GeneratedScoring(self.metric, self.metric, self.score)

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> Split:
        """Hold out the first `held_out` questions, validate on the next, and train on the rest.

        So the held-out questions of a seed stay the same when there are more to train on.

        Args:
            seed: Seed of the run; other seeds give other examples.
            max_per_task: Number of training examples, at least 1.
            held_out: Number of held-out questions, at least 1.
            validation: Number of questions that choose a checkpoint.

        Raises:
            UserError: The task has fewer than `MIN_DISTINCT` distinct questions, or fewer than
                needed; or a held-out or validation question is in training too.
        """
        if max_per_task < 1 or held_out < 1 or validation < 0:
            raise UserError(
                'max_per_task and held_out must be at least 1 and validation at least 0, not '
                f'{max_per_task}, {held_out} and {validation}.'
            )
        kept = held_out + validation
        needed = max(MIN_DISTINCT, kept + max_per_task)
        examples = self.source.examples(seed, needed)
        distinct = len({question_key(example.question) for example in examples})
        if distinct < needed:
            raise UserError(
                f'Task {self.name!r} has {distinct:,} distinct questions; {kept + max_per_task:,}'
                f' are needed, and a task with fewer than {MIN_DISTINCT:,} does not count.'
            )
        train = examples[kept : kept + max_per_task]
        split = Split(self, train, examples[:held_out], distinct, examples[held_out:kept])
        _check_disjoint(self.name, split.held_out, [*train, *split.validation])
        _check_disjoint(self.name, split.validation, train)
        return split


_TASKS: dict[str, TaskProtocol] = {}


def register(task: TaskProtocol) -> None:
    """Make a task known by its name.

    Raises:
        ValueError: The name is taken.
    """
    if task.name in _TASKS:
        raise ValueError(f'There is already a task {task.name!r}.')
    _TASKS[task.name] = task


def get_task(name: str) -> TaskProtocol:
    """Return the registered task of that name.

    Raises:
        UserError: There is none.
    """
    if name not in _TASKS:
        raise unknown_name('task', name, _TASKS)
    return _TASKS[name]


def task_names() -> list[str]:
    """Return the names of all registered tasks, sorted."""
    return sorted(_TASKS)


def take_distinct(name: str, draws: Iterable[Example], count: int) -> list[Example]:
    """Return the first `count` examples whose questions differ by `question_key`.

    Args:
        name: Name of the task, for the message.
        draws: Finitely many examples; repetitions are skipped.
        count: Number of examples.

    Raises:
        UserError: `draws` has fewer.
    """
    distinct: dict[str, Example] = {}
    for example in draws:
        distinct.setdefault(question_key(example.question), example)
        if len(distinct) == count:
            return list(distinct.values())
    raise UserError(
        f'Task {name!r} has only {len(distinct):,} distinct questions, but {count:,} are needed.'
    )


def _check_disjoint(name: str, kept: Sequence[Example], others: Sequence[Example]) -> None:
    seen = {question_key(example.question) for example in others}
    shared = [e.question for e in kept if question_key(e.question) in seen]
    if shared:
        raise UserError(
            f'Task {name!r}: {len(shared)} held-out questions are also in training, '
            f'such as {shared[0]!r}.'
        )
