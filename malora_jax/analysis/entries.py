"""Rows of a table from finished runs: which runs belong together, and what they reached.

Dimensions: S runs that differ in their seed, Q questions of a task.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from malora_jax.analysis.compare import Run
from malora_jax.analysis.paper import Row, Table, is_single_task
from malora_jax.errors import UserError
from malora_jax.statistics import (
    Difference,
    Interval,
    average_interval,
    paired_bootstrap,
    score_interval,
)
from malora_jax.training.config import defaults

_Answers = Sequence[Mapping[str, Any]]

BASE = 'base'
# What a run does not depend on, but for rounding.
_IMMATERIAL = (
    *('data.directory', 'data.workers', 'evaluation.batch_size', 'training.checkpoint_every'),
    *('training.keep_checkpoints', 'training.remat'),
)
# Which tasks a run is about, and what can only be said of these.
_OF_TASKS = ('data.tasks', 'data.weights', 'data.task_settings', 'evaluation.tasks')
# What the rows of a table differ in by their nature.
_OF_A_ROW = ('seed', 'method', 'data.tasks', 'evaluation.tasks')


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of ours.

    Attributes:
        label: what it is called.
        tasks: the table's columns.
        runs: what it is made from: a run for each seed, and for each task if alone; the base model
            has none.
        scores: of each task that is scored, (S, Q).
        losses: of each of these tasks, (S, Q): nats of the right answers by the tokens that these
            have on average, so that a run's mean is all nats by all tokens.
        paper: the paper's row, if it has one.
    """

    label: str
    tasks: Sequence[str]
    runs: Sequence[Run]
    scores: Mapping[str, np.ndarray]
    losses: Mapping[str, np.ndarray]
    paper: Row | None

    @property
    def method(self) -> str:
        """Name of the method; '' for the base model."""
        return self.runs[0].config['method'] if self.runs else ''

    @property
    def single_task(self) -> bool:
        """Whether each task was trained on alone."""
        return bool(self.runs) and is_single_task(self.runs[0].config)

    @property
    def is_whole(self) -> bool:
        """Whether every task is scored, as averages need."""
        return self.scores.keys() == {*self.tasks}

    def score(self, task: str) -> tuple[float, Interval] | None:
        """The mean score on a task, with its 95% interval for other questions of its kind."""
        if task not in self.scores:
            return None
        scores_SQ = self.scores[task]
        return float(scores_SQ.mean()), score_interval(scores_SQ)

    def average(self) -> tuple[float, Interval] | None:
        """The mean over tasks, with its interval."""
        if not self.is_whole:
            return None
        mean = float(np.mean([scores.mean() for scores in self.scores.values()]))
        return mean, average_interval(self.scores)

    def average_loss(self) -> float | None:
        """The mean over tasks, in nats per token."""
        if not self.is_whole:
            return None
        return float(np.mean([losses.mean() for losses in self.losses.values()]))

    def average_by_seed(self) -> dict[int, float]:
        """The mean over tasks of each seed that every task has."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            means = [task['after'] for task in run.results['tasks'].values()]
            found.setdefault(run.config['seed'], []).extend(means)
        return {
            seed: sum(means) / len(means)
            for seed, means in sorted(found.items())
            if len(means) == len(self.tasks)
        }

    def change_from(self, other: 'Entry') -> Difference | None:
        """By how much the average differs from another row's."""
        if not (self.is_whole and other.is_whole):
            return None
        return paired_bootstrap(self.scores, other.scores)

    def loss_change_from(self, other: 'Entry') -> Difference | None:
        """By how much the average loss differs from another row's."""
        if not (self.is_whole and other.is_whole):
            return None
        return paired_bootstrap(self.losses, other.losses)

    def changes_from(self, other: 'Entry') -> dict[str, Difference]:
        """By how much each task that both have differs from another row's."""
        return {
            task: paired_bootstrap({task: scores}, {task: other.scores[task]})
            for task, scores in self.scores.items()
            if task in other.scores
        }


def make_entries(table: Table, runs: Sequence[Run], directory: pathlib.Path) -> dict[str, Entry]:
    """The rows that there are runs for, and the base model: the paper's in its order, then others.

    Args:
        table: whose rows they are.
        runs: comparable ones.
        directory: where they are, for messages.

    Raises:
        UserError: a run is not scored on the table's tasks, is named as a row that it is not, or
            differs from another of its row in more than seed and tasks.
    """
    grouped: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.config['seed'], run.name)):
        grouped.setdefault(_name(table, run, directory), []).append(run)
    names = [*table.rows, *sorted(grouped.keys() - table.rows.keys())]
    entries = {BASE: _base_entry(table, runs)}
    for name in names:
        if name in grouped:
            _check_alike(grouped[name], directory)
            entries[name] = _entry(table, name, grouped[name])
    return entries


def other_settings(entries: Mapping[str, Entry]) -> dict[str, dict[str, list[str]]]:
    """By field of the config: its values, written out, with the rows that have them.

    Of the fields in which rows differ besides method, adapter, seed and tasks.
    """
    settings = {name: _settings(run) for name, entry in entries.items() for run in entry.runs[:1]}
    found = {}
    for field in sorted({field for fields in settings.values() for field in fields}):
        values: dict[str, list[str]] = {}
        for name, fields in settings.items():
            values.setdefault(repr(fields.get(field)), []).append(name)
        if len(values) > 1 and field not in _OF_A_ROW and not field.startswith('adapter.'):
            found[field] = values
    return found


def _name(table: Table, run: Run, directory: pathlib.Path) -> str:
    """The name of a run's row: the paper's, or one by its directory."""
    tasks, single = set(run.results['tasks']), is_single_task(run.config)
    if not (len(tasks) == 1 and tasks <= {*table.tasks} if single else tasks == {*table.tasks}):
        raise UserError(
            f'The run {run.name} in {directory} is scored on {", ".join(sorted(tasks))}; '
            f'for {table.title}, it must be {"one" if single else "all"} of '
            f'{", ".join(table.tasks)}.'
        )
    name = table.row_of(run.config)
    if name:
        return name
    name = re.sub(r'-seed\d+$', '', run.name)
    if single:
        name = f'{name.removesuffix("-" + tasks.pop())}_single'
    if name in table.rows or name == BASE:
        raise UserError(
            f'The run {run.name} in {directory} has another adapter than the row {name} of '
            f'{table.title}: rename its directory to give it a row of its own.'
        )
    return name


def _entry(table: Table, name: str, runs: Sequence[Run]) -> Entry:
    row = table.rows.get(name)
    answers: dict[str, list[_Answers]] = {}
    for run in runs:
        for task in run.results['tasks']:
            answers.setdefault(task, []).append(_of_task(run.after, task))
    return Entry(row.label if row else f'`{name}`', table.tasks, runs, *_found(table, answers), row)


def _base_entry(table: Table, runs: Sequence[Run]) -> Entry:
    """What the runs began with, which is the same for all."""
    asked = {task: run for run in reversed(runs) for task in run.results['tasks']}
    answers = {task: [_of_task(run.before, task)] for task, run in asked.items()}
    return Entry(BASE, table.tasks, (), *_found(table, answers), table.rows.get(BASE))


def _of_task(answers: _Answers, task: str) -> _Answers:
    return [answer for answer in answers if answer['task'] == task]


def _found(
    table: Table, answers: Mapping[str, Sequence[_Answers]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`scores` and `losses` of an entry, from the answers of S runs to each task."""
    scores, losses = {}, {}
    for task in table.tasks:
        if task in answers:
            scores[task], nats_SQ, tokens_SQ = (
                np.array([[answer[field] for answer in of_run] for of_run in answers[task]])
                for field in ('score', 'nats', 'tokens')
            )
            losses[task] = nats_SQ / tokens_SQ.mean(axis=1, keepdims=True)
    return scores, losses


def _settings(run: Run) -> dict[str, Any]:
    """All fields of a run's config that it depends on, by their paths."""
    fields = defaults() | flatten_dict(run.config, sep='.')
    return {field: value for field, value in fields.items() if field not in _IMMATERIAL}


def _check_alike(runs: Sequence[Run], directory: pathlib.Path) -> None:
    """Checks runs of one row, in the order of their seeds."""
    with_settings = [(run, _settings(run)) for run in runs]
    for (one, settings), (other, others) in itertools.combinations(with_settings, 2):
        same_tasks = one.results['tasks'].keys() == other.results['tasks'].keys()
        free = {'seed'} if same_tasks else {'seed', *_OF_TASKS}
        fields = sorted({*settings, *others} - free)
        differ = [field for field in fields if settings.get(field) != others.get(field)]
        if not differ and not (same_tasks and settings['seed'] == others['seed']):
            continue
        what = f'differ in {differ[0]}' if differ else 'have the same seed'
        raise UserError(
            f'The runs {one.name} and {other.name} in {directory} are of one row but {what}: '
            'move one of them away.'
        )
