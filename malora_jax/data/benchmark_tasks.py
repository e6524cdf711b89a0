"""Public datasets as tasks: items in a prompt form, with the splits of their publishers.

Training examples are sampled by the run's seed; so are the validation ones, from the same split.
Held-out questions are those of the published test split, the same ones for every seed, so that runs
can be compared question by question. Training examples are read when they are drawn.
"""

import dataclasses
from collections.abc import Callable, Sequence

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
from malora_jax.data.scorers import SCORERS, label
from malora_jax.data.seeds import stable_seed
from malora_jax.data.splits import Split
from malora_jax.data.store import Store
from malora_jax.data.tasks import Example, Scoring, question_key
from malora_jax.errors import UserError, unknown_name

_SCORERS = {**SCORERS, 'label': label}
_SETTINGS = ('form', 'shots')
_ACCURACY = dict.fromkeys(('likelihood', 'letter', 'label', 'number'), 'accuracy')
_METRICS = {**_ACCURACY, 'code': 'pass@1'}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A public dataset in a prompt form.

    Attributes:
        dataset: where the items are from.
        form: name of the prompt form, in training and in scoring.
        shots: solved training examples in front of each held-out question; None = the default.
    """

    dataset: Dataset
    form: str
    shots: int | None = None

    @property
    def name(self) -> str:
        """That of the dataset."""
        return self.dataset.name

    @property
    def scoring(self) -> Scoring:
        """The dataset's default in this form.

        Raises:
            UserError: it is only trained on, or has no training split to take shots from.
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

    @property
    def metric(self) -> str:
        """What results call the mean score."""
        return _METRICS.get(self.scoring.rule, self.scoring.rule)

    @property
    def score(self) -> Callable[[str, Example], float]:
        """The scorer of what the model says; options and programs are not scored by text."""
        return _SCORERS[self.scoring.rule]

    def example(self, item: Item) -> Example:
        """The item in the form."""
        return get_form(self.form)(self.name, item)


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


def benchmark(name: str, form: str, settings: Sequence[str]) -> Benchmark:
    """The task of a public dataset, as a config's `data` section says.

    Raises:
        UserError: there is no such dataset, or a setting is wrong.
    """
    own = benchmark_settings(form, settings).get(name, {})
    shots = int(own['shots']) if 'shots' in own else None
    return Benchmark(get_dataset(name), own.get('form', form), shots)


def split_benchmark(
    task: Benchmark,
    store: Store,
    seed: int,
    max_per_task: int,
    held_out: int,
    validation: int,
    *,
    trained: bool,
    scored: bool,
) -> Split:
    """The examples of a public dataset, prepared if they are not.

    Args:
        task: the dataset in a form.
        store: where it is.
        seed: of the run; other seeds sample other examples to train on.
        max_per_task: at most how many to train on; 0 = all.
        held_out: at most how many questions of the test split to score, whatever the seed; 0 = all.
        validation: how many questions of the training split to keep for choosing a checkpoint; no
            example with one of them is trained on.
        trained: whether it is trained on.
        scored: whether it is scored.

    Raises:
        UserError: it cannot be prepared, lacks a split, or has too few examples.
    """
    _check_splits(task, trained, scored)
    scoring = task.scoring if scored else None
    store.prepare(task.dataset)
    train: Sequence[Example] = []
    chosen: list[Example] = []
    distinct = 0
    if trained:
        items = store.items(task.dataset, 'train')
        order = _order('sample', task, len(items), seed)
        if validation:
            chosen, order = _kept(task, items, order, validation, max_per_task)
        train = Examples(task, items, order[: max_per_task or None])
        distinct = len(items)
    held = _held_out(task, scoring, store, held_out) if scoring else []
    return Split(task, train, held, distinct, chosen, {'dataset': store.lock(task.dataset)})


def _check_splits(task: Benchmark, trained: bool, scored: bool) -> None:
    if trained and 'train' not in task.dataset.splits:
        raise UserError(
            f'Task {task.name!r} has no training split: name it in evaluation.tasks, not in '
            'data.tasks.'
        )
    if scored and 'test' not in task.dataset.splits:
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


def _held_out(task: Benchmark, scoring: Scoring, store: Store, count: int) -> list[Example]:
    """A sample of the test split's questions in their order, with shots."""
    items: Sequence[Item] = store.items(task.dataset, 'test')
    if task.dataset.grouped:
        items = group_answers(items)
    order = _order('held out', task, len(items))
    questions = Examples(task, items, np.sort(order[: count or None]))
    if not scoring.shots:
        return list(questions)
    shown = store.items(task.dataset, 'train')
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
