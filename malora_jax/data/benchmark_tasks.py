"""Tasks for public datasets: items in a prompt form, with the publisher's splits.

Training examples are sampled from the training split with the run's seed, and so are validation
examples, from the same split. Held-out questions come from the published test split. They are the
same for every seed, so that runs can be compared question by question. Training examples are read
from disk only when they are drawn.
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

    For example, with GSM8K scored without few-shot examples::

        task = Benchmark(get_dataset('gsm8k'), form='completion', shots=0)
        split = task.split(seed=0, max_per_task=1000, held_out=200)

    Attributes:
        dataset: Dataset with the items.
        form: Name of the prompt form, in training and in scoring.
        shots: Number of few-shot examples (solved training examples) in front of each held-out
            question; None = the dataset's default.
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
        """Default scoring rule of the dataset in this form, with the given number of shots.

        Raises:
            UserError: The dataset has no scoring rule because it is only for training, or it has no
                training split to take shots from.
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
        """Return the item as an example in this prompt form."""
        return get_form(self.form)(self.name, item)

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> Split:
        """Return the examples that the run needs, and prepare the dataset first if necessary.

        Args:
            seed: Seed of the run; each seed samples different training examples.
            max_per_task: Maximum number of training examples; 0 = all.
            held_out: Maximum number of questions of the test split to score, independent of the
                seed; 0 = all.
            validation: Number of questions of the training split that are used to choose a
                checkpoint. Training excludes all examples with these questions.

        Raises:
            UserError: The dataset cannot be prepared, lacks a split, or has too few examples.
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
    """Selected items of a split, converted to examples on access."""

    def __init__(self, task: Benchmark, items: Sequence[Item], indices: np.ndarray):
        """Create the examples of the items at the given indices.

        Args:
            task: Task whose prompt form is used.
            items: All items of the split.
            indices: Indices of the selected items, shape (N,), integers.
        """
        self._task, self._items, self._indices = task, items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self._task.example(self._items[int(self._indices[index])])


def is_benchmark(name: str) -> bool:
    """Return whether a task name is the name of a public dataset.

    For example::

        is_benchmark('gsm8k')  # True
    """
    return name in DATASETS


def benchmark_settings(form: str, settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the prompt forms and numbers of shots that are set for single datasets.

    For example::

        benchmark_settings('completion', ['gsm8k.shots=0'])  # {'gsm8k': {'shots': '0'}}

    Args:
        form: Prompt form of the datasets without a setting of their own; only its name is checked.
        settings: Entries 'NAME.FIELD=VALUE', where FIELD is `form` or `shots`.

    Returns:
        The settings, as text, by dataset and field.

    Raises:
        UserError: An entry is malformed, repeated, or has an unknown name.
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

    For example::

        task = benchmark('gsm8k', 'completion', ['gsm8k.shots=0'])

    Args:
        name: Name of the dataset.
        form: Prompt form, unless the settings name another one.
        settings: Entries 'NAME.FIELD=VALUE', as for `benchmark_settings`.
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
    """Choose the validation examples and the training examples.

    Args:
        task: Task of the examples.
        items: All items of the training split.
        order: Random order of their indices, shape (N,).
        count: Number of validation questions, at least 1.
        most: Maximum number of training examples; 0 = all.

    Returns:
        One example for each of the first `count` distinct questions, and the indices of the
        training examples, which have other questions.

    Raises:
        UserError: Fewer than half of the examples are left for training.
    """
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
    """Return sampled questions of the test split, in the split's order, each with its shots."""
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
    """Return the indices of a split in random order, by default in the same order for all runs."""
    return np.random.default_rng(stable_seed(purpose, task.name, seed)).permutation(count)
