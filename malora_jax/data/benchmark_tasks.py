"""Public datasets as tasks: items in a prompt form, with the splits of their publishers.

Training examples are sampled by the run's seed; so are the validation ones, from the same split.
Held-out questions are those of the published test split, the same ones for every seed, so that runs
can be compared question by question. Training examples are read when they are drawn.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from malora_jax.data.benchmarks import (
    DATASETS,
    Dataset,
    Item,
    default_scoring,
    get_dataset,
    get_form,
    group_answers,
    with_shots,
)
from malora_jax.data.examples import Example, question_key
from malora_jax.data.scoring import Scoring
from malora_jax.data.seeds import stable_seed
from malora_jax.data.splits import Split
from malora_jax.data.store import Store, open_store
from malora_jax.errors import UserError, unknown_name

_SETTINGS = ('form', 'shots')


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A public dataset in a prompt form.

    Attributes:
        dataset: Dataset with the items.
        form: Name of the prompt form, in training and in scoring.
        shots: Number of solved training examples in front of each held-out question; None = the
            default.
        store: Directory of the prepared datasets.
        trained: Whether the run trains on it, so that it needs a training split.
        scored: Whether the run scores it, so that it needs a test split.
    """

    dataset: Dataset
    form: str
    shots: int | None = None
    store: Store = dataclasses.field(default_factory=open_store)
    trained: bool = True
    scored: bool = True

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset.name

    @property
    def scoring(self) -> Scoring:
        """The dataset's default in this form, with the given shots.

        Raises:
            UserError: It is only trained on, or has no training split to take shots from.
        """
        scoring = default_scoring(self.name, self.form)
        if self.shots is None:
            return scoring
        if self.shots and 'train' not in self.dataset.splits:
            raise UserError(
                f'data.task_settings: {self.name} has no training split to take shots from; its '
                'shots must be 0.'
            )
        return dataclasses.replace(scoring, shots=self.shots)

    def example(self, item: Item) -> Example:
        """Return the item in the form."""
        return get_form(self.form)(self.name, item)

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> Split:
        """Return the examples that the run needs; a dataset that is not prepared is prepared first.

        Args:
            seed: Seed of the run; other seeds sample other examples to train on.
            max_per_task: Maximum number of training examples; 0 = all.
            held_out: Maximum number of questions of the test split to score, whatever the seed;
                0 = all.
            validation: Number of questions of the training split that choose a checkpoint; no
                example with one of them is trained on.

        Raises:
            UserError: It cannot be prepared, lacks a split, or has too few examples.
        """
        _check_splits(self)
        scoring = self.scoring if self.scored else None
        self.store.prepare(self.dataset)
        train: Sequence[Example] = []
        chosen: list[Example] = []
        distinct = 0
        if self.trained:
            items = self.store.items(self.dataset, 'train')
            order = _order('sample', self, len(items), seed)
            if validation:
                chosen, order = _kept(self, items, order, validation, max_per_task)
            train = Examples(self, items, order[: max_per_task or None])
            distinct = len(items)
        held = _held_out(self, scoring, held_out) if scoring else []
        origin = {'dataset': self.store.lock(self.dataset)}
        return Split(self, train, held, distinct, chosen, origin, published=True)


class Examples(Sequence[Example]):
    """Some items of a split as examples, made when they are asked for."""

    def __init__(self, task: Benchmark, items: Sequence[Item], indices: np.ndarray):
        """Examples of the items at `indices`."""
        self._task, self._items, self._indices = task, items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self._task.example(self._items[int(self._indices[index])])


def is_benchmark(name: str) -> bool:
    """Whether a task's name is that of a public dataset."""
    return name in DATASETS


def benchmark_settings(form: str, settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """What differs from the default form and shots, by dataset.

    Args:
        form: for datasets without a setting of their own.
        settings: 'NAME.FIELD=VALUE' each: `form` or `shots` of one dataset.

    Raises:
        UserError: an entry of another form or with an unknown name.
    """
    get_form(form)
    found: dict[str, dict[str, str]] = {}
    for entry in settings:
        place, equals, value = entry.partition('=')
        name, dot, field = place.partition('.')
        if not (equals and dot):
            raise UserError(
                f"data.task_settings holds {entry!r}; write 'NAME.FIELD=VALUE', such as "
                "'gsm8k.shots=0'."
            )
        get_dataset(name)
        if field in found.get(name, {}):
            raise UserError(f'data.task_settings sets {place} twice; once is enough.')
        if field not in _SETTINGS:
            raise unknown_name('field in data.task_settings', field, _SETTINGS)
        if field == 'form':
            get_form(value)
        elif not value.isdecimal():
            raise UserError(f'data.task_settings: {entry!r} must give a number of shots from 0.')
        found.setdefault(name, {})[field] = value
    return found


def benchmark(
    name: str,
    form: str,
    settings: Sequence[str],
    store: Store | None = None,
    *,
    trained: bool = True,
    scored: bool = True,
) -> Benchmark:
    """Return the task of a public dataset, as a config's `data` section describes it.

    Args:
        name: Name of the dataset.
        form: Prompt form, unless the settings name another one.
        settings: 'NAME.FIELD=VALUE' each, as for `benchmark_settings`.
        store: Directory of the prepared datasets; None = the default one.
        trained: Whether the run trains on it.
        scored: Whether the run scores it.

    Raises:
        UserError: There is no such dataset, or a setting is wrong.
    """
    own = benchmark_settings(form, settings).get(name, {})
    shots = int(own['shots']) if 'shots' in own else None
    return Benchmark(
        get_dataset(name), own.get('form', form), shots, store or open_store(), trained, scored
    )


def _check_splits(task: Benchmark) -> None:
    if task.trained and 'train' not in task.dataset.splits:
        raise UserError(
            f'Task {task.name!r} has no training split: name it in evaluation.tasks, not in '
            'data.tasks.'
        )
    if task.scored and 'test' not in task.dataset.splits:
        raise UserError(
            f'Task {task.name!r} has no test split: evaluation.tasks must name the tasks to score '
            'without it.'
        )


def _kept(
    task: Benchmark, items: Sequence[Item], order: np.ndarray, count: int, most: int
) -> tuple[list[Example], np.ndarray]:
    """The first `count` questions, and the indices of at most `most` examples of other ones."""
    kept: dict[str, Example] = {}
    rest: list[int] = []
    for index, example in zip(order, Examples(task, items, order), strict=True):
        key = question_key(example.question)
        if key not in kept and len(kept) == count:
            rest.append(index)
        else:
            kept.setdefault(key, example)
        if most and len(rest) == most:
            break
    if 2 * count > len(order) or not rest:
        raise UserError(
            f'Task {task.name!r} has {len(order):,} training examples; data.validation = {count}'
            ' must leave half of them to train on.'
        )
    return list(kept.values()), np.array(rest)


def _held_out(task: Benchmark, scoring: Scoring, count: int) -> list[Example]:
    """Return a sample of the test split's questions in their order, with shots."""
    items: Sequence[Item] = task.store.items(task.dataset, 'test')
    if task.dataset.grouped:
        items = group_answers(items)
    order = _order('held out', task, len(items))
    questions = Examples(task, items, np.sort(order[: count or None]))
    if not scoring.shots:
        return list(questions)
    shown = task.store.items(task.dataset, 'train')
    if len(shown) < scoring.shots:
        raise UserError(
            f'Task {task.name!r} has {len(shown)} training examples, too few for '
            f'{scoring.shots} shots.'
        )
    order = _order('shots', task, len(shown))
    shots = list(Examples(task, shown, order[: scoring.shots]))
    return [with_shots(question, shots) for question in questions]


def _order(purpose: str, task: Benchmark, count: int, seed: int = 0) -> np.ndarray:
    """Random indices of a split; without a seed, the same in all runs."""
    return np.random.default_rng(stable_seed(purpose, task.name, seed)).permutation(count)
