"""Tasks for public datasets: items rendered in a prompt form, with the publisher's splits.

An item is a parsed row of a dataset. A prompt form turns an item into a prompt and its answer.

Training and validation examples are sampled from the training split with the run's seed. Held-out
questions come from the published test split. They are the same for every seed, so that runs can be
compared question by question. Training examples are read from disk only when they are drawn.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from malora_jax.data.datasets import (
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
from malora_jax.data.splits import TaskSplit
from malora_jax.data.store import Store, open_store
from malora_jax.errors import UserError, unknown_name

_SETTINGS = ('form', 'shots')


@dataclasses.dataclass(frozen=True)
class DatasetTask:
    """A public dataset in a prompt form.

    For example, with GSM8K scored without few-shot examples::

        task = DatasetTask(get_dataset('gsm8k'), form='completion', shots=0)
        split = task.split(seed=0, max_per_task=1000, held_out=200)

    Attributes:
        dataset: Public dataset.
        form: Name of the prompt form, for training and for scoring.
        shots: Number of few-shot examples (solved training examples) in front of each held-out
            question; None = the dataset's default.
        store: Directory of the prepared datasets.
        needs_train_split: Whether the run trains on the task, so that it needs a training split.
        needs_test_split: Whether the run scores the task, so that it needs a test split.
    """

    dataset: Dataset
    form: str
    shots: int | None = None
    store: Store = dataclasses.field(default_factory=open_store)
    needs_train_split: bool = True
    needs_test_split: bool = True

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

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> TaskSplit:
        """Return the examples that the run needs, and prepare the dataset first if necessary.

        Args:
            seed: Seed of the run; each seed samples different training examples.
            max_per_task: Maximum number of training examples; 0 = all.
            held_out: Maximum number of questions of the test split to score; 0 = all. Every seed
                scores the same questions.
            validation: Number of questions of the training split that are used to choose a
                checkpoint. Training excludes all examples with these questions.

        Raises:
            UserError: The dataset cannot be prepared, lacks a split, or has too few examples.
        """
        _check_splits(self)
        scoring = self.scoring if self.needs_test_split else None
        self.store.prepare(self.dataset)
        train: Sequence[Example] = []
        validation_examples: list[Example] = []
        distinct = 0
        if self.needs_train_split:
            items = self.store.items(self.dataset, 'train')
            order = _order('sample', self, len(items), seed)
            if validation:
                validation_examples, order = _split_validation(
                    self, items, order, validation, max_per_task
                )
            train = LazyExamples(self, items, order[: max_per_task or None])
            distinct = len(items)
        held_out_examples = _held_out(self, scoring, held_out) if scoring else []
        origin = {'dataset': self.store.lock_entry(self.dataset)}
        return TaskSplit(
            self, train, held_out_examples, distinct, validation_examples, origin, published=True
        )


class LazyExamples(Sequence[Example]):
    """Selected items of a split, converted to examples on access."""

    def __init__(self, task: DatasetTask, items: Sequence[Item], indices: np.ndarray):
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


def is_public_dataset(name: str) -> bool:
    """Return whether a task name is the name of a public dataset.

    For example::

        is_public_dataset('gsm8k')  # True
    """
    return name in DATASETS


def dataset_settings(form: str, settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the prompt forms and numbers of shots that are set for individual datasets.

    For example::

        dataset_settings('completion', ['gsm8k.shots=0'])  # {'gsm8k': {'shots': '0'}}

    Args:
        form: Default prompt form. Only its name is checked; it is not part of the result.
        settings: Entries 'NAME.FIELD=VALUE', where FIELD is `form` or `shots`.

    Returns:
        The values of the settings, as text, by dataset name and field.

    Raises:
        UserError: An entry is malformed, repeated, or has an unknown name.
    """
    get_form(form)
    by_dataset: dict[str, dict[str, str]] = {}
    for entry in settings:
        target, equals, value = entry.partition('=')
        name, dot, field = target.partition('.')
        if not (equals and dot):
            raise UserError(
                f"data.task_settings holds {entry!r}; write 'NAME.FIELD=VALUE', such as "
                "'gsm8k.shots=0'."
            )
        get_dataset(name)
        if field in by_dataset.get(name, {}):
            raise UserError(f'data.task_settings sets {target} twice; remove one of the entries.')
        if field not in _SETTINGS:
            raise unknown_name('field in data.task_settings', field, _SETTINGS)
        if field == 'form':
            get_form(value)
        elif not value.isdecimal():
            raise UserError(
                f'data.task_settings: {entry!r}: the number of shots must be a whole number, 0 or '
                'more.'
            )
        by_dataset.setdefault(name, {})[field] = value
    return by_dataset


def dataset_task(
    name: str,
    form: str,
    settings: Sequence[str],
    store: Store | None = None,
    *,
    needs_train_split: bool = True,
    needs_test_split: bool = True,
) -> DatasetTask:
    """Return the task of a public dataset, as a config's `data` section describes it.

    For example::

        task = dataset_task('gsm8k', 'completion', ['gsm8k.shots=0'])

    Args:
        name: Name of the dataset.
        form: Prompt form, unless the settings name another one.
        settings: Entries 'NAME.FIELD=VALUE', as for `dataset_settings`.
        store: Directory of the prepared datasets; None = the default one.
        needs_train_split: Whether the run trains on the task.
        needs_test_split: Whether the run scores the task.

    Raises:
        UserError: There is no such dataset, or a setting is wrong.
    """
    own = dataset_settings(form, settings).get(name, {})
    shots = int(own['shots']) if 'shots' in own else None
    return DatasetTask(
        get_dataset(name),
        own.get('form', form),
        shots,
        store or open_store(),
        needs_train_split,
        needs_test_split,
    )


def _check_splits(task: DatasetTask) -> None:
    if task.needs_train_split and 'train' not in task.dataset.splits:
        raise UserError(
            f'Task {task.name!r} has no training split: name it in evaluation.tasks, not in '
            'data.tasks.'
        )
    if task.needs_test_split and 'test' not in task.dataset.splits:
        raise UserError(
            f'Task {task.name!r} has no test split: list the tasks to score in evaluation.tasks, '
            'without this one.'
        )


def _split_validation(
    task: DatasetTask, items: Sequence[Item], order: np.ndarray, count: int, max_train: int
) -> tuple[list[Example], np.ndarray]:
    """Choose the validation examples and the training examples.

    Args:
        task: Task of the examples.
        items: All items of the training split.
        order: Indices of the items in random order, shape (N,), integers.
        count: Number of validation questions, at least 1.
        max_train: Maximum number of training examples; 0 = all.

    Returns:
        One example for each of the first `count` distinct questions, and the integer indices of
        the training examples, which have other questions.

    Raises:
        UserError: Fewer than half of the examples are left for training.
    """
    validation: dict[str, Example] = {}
    rest: list[int] = []
    for index, example in zip(order, LazyExamples(task, items, order), strict=True):
        key = question_key(example.question)
        if key not in validation and len(validation) == count:
            rest.append(index)
        else:
            validation.setdefault(key, example)
        if max_train and len(rest) == max_train:
            break
    if 2 * count > len(order) or not rest:
        raise UserError(
            f'Task {task.name!r} has {len(order):,} training examples; data.validation = {count}'
            ' must leave half of them to train on.'
        )
    return list(validation.values()), np.array(rest)


def _held_out(task: DatasetTask, scoring: Scoring, count: int) -> list[Example]:
    """Return the held-out examples: a sample of the test split, in the split's order.

    Args:
        task: Task whose test split is sampled.
        scoring: Scoring rule, which determines the number of shots in front of each question.
        count: Maximum number of examples; 0 = all.
    """
    items: Sequence[Item] = task.store.items(task.dataset, 'test')
    if task.dataset.multi_reference:
        items = group_answers(items)
    order = np.sort(_order('held out', task, len(items))[: count or None])
    questions = LazyExamples(task, items, order)
    if not scoring.shots:
        return list(questions)
    train_items = task.store.items(task.dataset, 'train')
    if len(train_items) < scoring.shots:
        raise UserError(
            f'Task {task.name!r} has {len(train_items)} training examples, too few for '
            f'{scoring.shots} shots.'
        )
    if task.dataset.has_subjects:
        return _with_shots_of_subject(task, [items[i] for i in order], train_items, scoring.shots)
    order = _order('shots', task, len(train_items))
    shots = list(LazyExamples(task, train_items, order[: scoring.shots]))
    return [with_shots(question, shots) for question in questions]


def _with_shots_of_subject(
    task: DatasetTask, items: Sequence[Item], train_items: Iterable[Item], count: int
) -> list[Example]:
    """Return few-shot examples whose shots are the first training items of the same subject.

    The passage, which introduces the subject, is written once in front of all shots.

    Args:
        task: Task of the examples.
        items: Items to ask.
        train_items: All items of the training split.
        count: Number of shots.
    """

    def without_subject(item: Item) -> Example:
        return task.example(dataclasses.replace(item, passage=''))

    by_subject: dict[str, list[Example]] = {}
    for item in train_items:
        by_subject.setdefault(item.passage, []).append(without_subject(item))
    examples = []
    for item in items:
        shots = by_subject.get(item.passage, [])[:count]
        if len(shots) < count:
            raise UserError(
                f'Task {task.name!r} has {len(shots)} training examples of a subject, too few for '
                f'{count} shots: {item.passage!r}'
            )
        example = with_shots(without_subject(item), shots)
        introduced = f'{item.passage}\n\n{example.question}'
        examples.append(dataclasses.replace(example, question=introduced))
    return examples


def _order(purpose: str, task: DatasetTask, count: int, seed: int = 0) -> np.ndarray:
    """Return the indices of a split in random order.

    Args:
        purpose: Use of the order, such as 'shots'; each purpose gets a different order.
        task: Task of the split; each dataset gets a different order.
        count: Number of examples of the split.
        seed: Seed of the run. With the default 0, all runs get the same order.
    """
    return np.random.default_rng(stable_seed(purpose, task.name, seed)).permutation(count)
