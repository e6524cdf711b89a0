"""Registry of tasks: a task names the source of its examples and the scorer of its answers.

A new task is one short block::

    class Squares:
        def examples(self, seed, count):
            rng = random.Random(seed)
            numbers = (rng.randrange(10**6) for _ in range(20 * count))
            draws = (Example(f'What is {n} squared?', str(n * n), {}) for n in numbers)
            return take_distinct('squares', draws, count)

    register_task(Task('squares', Squares(), exact_match))
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from malora_jax.data.examples import Example, question_key
from malora_jax.data.scorers import exact_match
from malora_jax.data.scoring import GenerationScoring
from malora_jax.data.splits import TaskProtocol, TaskSplit
from malora_jax.errors import UserError, unknown_name

# Minimum number of distinct questions of a task.
MIN_DISTINCT = 1_000


class Source(Protocol):
    """Interface of a source of examples.

    For example::

        source: Source = ReasoningGymSource('gcd', {'max_value': 200})
        examples = source.examples(seed=0, count=100)
    """

    def examples(self, seed: int, count: int) -> list[Example]:
        """Return `count` examples with distinct questions, in an order set by the seed alone.

        Raises:
            UserError: The source has fewer than `count` distinct questions. A source can call
                `take_distinct`, which raises this error.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A named source of examples and its scorer.

    For example::

        task = Task('gcd_200', ReasoningGymSource('gcd', {'max_value': 200}))
        split = task.split(seed=0, max_per_task=1000, held_out=100)

    Attributes:
        name: Name of the task in configs and results.
        source: Source of the examples.
        score: Scorer; score(prediction, example) is in [0, 1], and 1.0 only for a right answer.
        metric: Name of the mean score in results.
    """

    name: str
    source: Source
    score: Callable[[str, Example], float] = exact_match
    metric: str = 'exact_match'

    @property
    def scoring(self) -> GenerationScoring:
        """Scoring rule: the task's scorer compares the generated answer with the right one."""
        return GenerationScoring(self.metric, self.metric, self.score)

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> TaskSplit:
        """Hold out the first `held_out` questions, validate on the next, and train on the rest.

        So the held-out questions of a seed stay the same if the number of training examples
        changes.

        Args:
            seed: Seed of the run; each seed gives different examples.
            max_per_task: Number of training examples, at least 1.
            held_out: Number of held-out questions, at least 1.
            validation: Number of validation questions, which choose a checkpoint.

        Raises:
            UserError: A number is out of range; the task has fewer than `MIN_DISTINCT` distinct
                questions, or fewer than needed; or a held-out or validation question is also in
                training.
        """
        if max_per_task < 1 or held_out < 1 or validation < 0:
            raise UserError(
                'max_per_task and held_out must be at least 1 and validation at least 0, not '
                f'{max_per_task}, {held_out} and {validation}.'
            )
        reserved = held_out + validation
        needed = max(MIN_DISTINCT, reserved + max_per_task)
        examples = self.source.examples(seed, needed)
        distinct = len({question_key(example.question) for example in examples})
        if distinct < needed:
            raise UserError(
                f'Task {self.name!r} has {distinct:,} distinct questions; '
                f'{reserved + max_per_task:,} are needed, and every task needs at least '
                f'{MIN_DISTINCT:,}.'
            )
        train = examples[reserved : reserved + max_per_task]
        split = TaskSplit(self, train, examples[:held_out], distinct, examples[held_out:reserved])
        _check_disjoint(self.name, split.held_out, [*train, *split.validation])
        _check_disjoint(self.name, split.validation, train)
        return split


_TASKS: dict[str, TaskProtocol] = {}


def register_task(task: TaskProtocol) -> None:
    """Register a task under its name.

    For example::

        register_task(Task('squares', Squares(), exact_match))

    Raises:
        ValueError: The name is taken.
    """
    if task.name in _TASKS:
        raise ValueError(f'There is already a task {task.name!r}.')
    _TASKS[task.name] = task


def get_task(name: str) -> TaskProtocol:
    """Return the registered task with that name.

    For example::

        task = get_task('gcd')

    Raises:
        UserError: There is no such task.
    """
    if name not in _TASKS:
        raise unknown_name('task', name, _TASKS)
    return _TASKS[name]


def task_names() -> list[str]:
    """Return the names of all registered tasks, sorted.

    For example::

        'gcd' in task_names()  # True
    """
    return sorted(_TASKS)


def take_distinct(name: str, examples: Iterable[Example], count: int) -> list[Example]:
    """Return the first `count` examples with distinct questions, compared by `question_key`.

    For example, with an iterable `draws` of examples::

        examples = take_distinct('squares', draws, 100)

    Args:
        name: Name of the task, for the error message.
        examples: Finite sequence of examples; repeated questions are skipped.
        count: Number of examples.

    Raises:
        UserError: `examples` has fewer distinct questions.
    """
    distinct: dict[str, Example] = {}
    for example in examples:
        distinct.setdefault(question_key(example.question), example)
        if len(distinct) == count:
            return list(distinct.values())
    raise UserError(
        f'Task {name!r} has only {len(distinct):,} distinct questions, but {count:,} are needed.'
    )


def _check_disjoint(name: str, held_out: Sequence[Example], others: Sequence[Example]) -> None:
    seen = {question_key(example.question) for example in others}
    shared = [e.question for e in held_out if question_key(e.question) in seen]
    if shared:
        raise UserError(
            f'Task {name!r}: {len(shared)} held-out questions are also in training, '
            f'such as {shared[0]!r}.'
        )
