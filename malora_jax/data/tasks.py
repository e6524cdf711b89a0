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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from malora_jax.errors import UserError, unknown_name


@dataclass(frozen=True)
class Example:
    """A question and its answer, perhaps after others.

    Attributes:
        question: what the user asks, without any template.
        answer: what the model should say; there may be other right answers, see `Task.score`.
        metadata: what the task's scorer needs besides the answer.
        earlier: the turns before, each a question and its answer. In training these answers are
            learnt too; where the question is put to a model, they are what it has said.
    """

    question: str
    answer: str
    metadata: Mapping[str, Any]
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def opening(self) -> str:
        """The question that it all begins with."""
        return self.earlier[0][0] if self.earlier else self.question


@dataclass(frozen=True)
class Scoring:
    """How the held-out questions of a task are answered; it stands beside every score.

    Attributes:
        rule: 'likelihood': the model takes the most probable of the options; 'code': it writes
            programs that are run; else the name of the scorer of what it says.
        form: of the prompt; '' = the question in the run's template, and nothing else.
        shots: solved examples in front of the question.
        stop: texts before which a generated answer ends.
        max_new_tokens: where it is cut off; 0 = a little after the longest right answer.
    """

    rule: str
    form: str = ''
    shots: int = 0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0


class Source(Protocol):
    """Anything that makes examples."""

    def examples(self, seed: int, count: int) -> list[Example]:
        """`count` examples with distinct questions, in an order that only the seed decides.

        Raises:
            UserError: there are fewer; `take_distinct` sees to it.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A named source of examples and its metric.

    Attributes:
        name: how configs and results refer to the task.
        source: makes the examples.
        score: score(prediction, example) is in [0, 1], and 1.0 for a right answer only.
        metric: what results call the mean score.
    """

    name: str
    source: Source
    score: Callable[[str, Example], float]
    metric: str = 'exact_match'

    @property
    def scoring(self) -> Scoring:
        """A generated answer, in the run's template."""
        return Scoring(self.metric)


class Scored(Protocol):
    """What is needed of a task once it is split: a `Task`, a `FileTask` or a `Benchmark`."""

    @property
    def name(self) -> str:
        """How configs and results refer to the task."""
        ...

    @property
    def metric(self) -> str:
        """What results call the mean score."""
        ...

    @property
    def scoring(self) -> Scoring:
        """How its held-out questions are answered."""
        ...

    @property
    def score(self) -> Callable[[str, Example], float]:
        """Gives a prediction for an example a score in [0, 1], 1.0 if it is right."""
        ...


_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Makes a task known by its name.

    Raises:
        ValueError: the name is taken.
    """
    if task.name in _TASKS:
        raise ValueError(f'There is already a task {task.name!r}.')
    _TASKS[task.name] = task


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none.
    """
    if name not in _TASKS:
        raise unknown_name('task', name, _TASKS)
    return _TASKS[name]


def task_names() -> list[str]:
    """The names of all registered tasks, sorted."""
    return sorted(_TASKS)


def exact_match(prediction: str, example: Example) -> float:
    """1.0 if the prediction is the answer, apart from white space around it, else 0.0."""
    return float(prediction.strip() == example.answer.strip())


def question_key(question: str) -> str:
    """What two questions have in common if they differ in white space or case only."""
    return ' '.join(question.split()).casefold()


def take_distinct(name: str, draws: Iterable[Example], count: int) -> list[Example]:
    """The first `count` examples whose questions differ by `question_key`.

    Args:
        name: the task's name, for the message.
        draws: finitely many examples; repetitions are skipped.
        count: how many to take.

    Raises:
        UserError: `draws` ends before.
    """
    distinct: dict[str, Example] = {}
    for example in draws:
        distinct.setdefault(question_key(example.question), example)
        if len(distinct) == count:
            return list(distinct.values())
    raise UserError(
        f'Task {name!r} has only {len(distinct):,} distinct questions, but {count:,} are needed.'
    )
