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
from malora_jax.analysis.statistics import (
    Difference,
    Interval,
    average_interval,
    bootstrap_interval,
    paired_bootstrap,
    wilson_interval,
)
from malora_jax.errors import UserError

BASE = 'base'
# What a run does not depend on, but for rounding.
_IMMATERIAL = (
    *('data.directory', 'data.workers', 'evaluation.batch_size', 'training.checkpoint_every'),
    *('training.keep_checkpoints', 'training.remat'),
)
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
        losses: of each task, in nats per answer token, the mean over seeds.
        paper: the paper's row, if it has one.
    """

    label: str
    tasks: Sequence[str]
    runs: Sequence[Run]
    scores: Mapping[str, np.ndarray]
    losses: Mapping[str, float]
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
        if np.isin(scores_SQ, (0.0, 1.0)).all():
            right = float(scores_SQ.mean(axis=0).sum())
            interval = wilson_interval(right, scores_SQ.shape[1])
        else:
            interval = bootstrap_interval(scores_SQ)
        return float(scores_SQ.mean()), interval

    def average(self) -> tuple[float, Interval] | None:
        """The mean over tasks, with its interval."""
        if not self.is_whole:
            return None
        mean = float(np.mean([scores.mean() for scores in self.scores.values()]))
        return mean, average_interval(self.scores)

    def average_loss(self) -> float | None:
        """The mean over tasks, in nats per answer token."""
        return sum(self.losses.values()) / len(self.tasks) if self.is_whole else None

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
            differs from another of its row in more than the seed.
    """
    grouped: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.config['seed'], run.name)):
        grouped.setdefault(_name(table, run, directory), []).append(run)
    names = [*table.rows, *sorted(grouped.keys() - table.rows.keys())]
    entries = {BASE: _base_entry(table, runs)}
    for name in names:
        if name in grouped:
            _check_alike_but_seed(grouped[name], directory)
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
    scores: dict[str, list[list[float]]] = {}
    losses: dict[str, list[float]] = {}
    for run in runs:
        for task, result in run.results['tasks'].items():
            scores.setdefault(task, []).append(_scores(run.after, task))
            losses.setdefault(task, []).append(result['loss_after'])
    return Entry(
        row.label if row else f'`{name}`',
        table.tasks,
        runs,
        {task: np.array(scores[task]) for task in table.tasks if task in scores},
        {task: sum(of_task) / len(of_task) for task, of_task in losses.items()},
        row,
    )


def _base_entry(table: Table, runs: Sequence[Run]) -> Entry:
    """What the runs began with, which is the same for all."""
    asked = {task: run for run in reversed(runs) for task in run.results['tasks']}
    return Entry(
        BASE,
        table.tasks,
        (),
        {
            task: np.array([_scores(asked[task].before, task)])
            for task in table.tasks
            if task in asked
        },
        {task: run.results['tasks'][task]['loss_before'] for task, run in asked.items()},
        table.rows.get(BASE),
    )


def _scores(answers: Sequence[Mapping[str, Any]], task: str) -> list[float]:
    return [answer['score'] for answer in answers if answer['task'] == task]


def _settings(run: Run) -> dict[str, Any]:
    """All fields of a run's config that it depends on, by their paths."""
    fields = flatten_dict(run.config, sep='.')
    return {field: value for field, value in fields.items() if field not in _IMMATERIAL}


def _check_alike_but_seed(runs: Sequence[Run], directory: pathlib.Path) -> None:
    """Checks runs of one row, in the order of their seeds."""
    by_tasks: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        by_tasks.setdefault(frozenset(run.results['tasks']), []).append(run)
    for one, other in (pair for alike in by_tasks.values() for pair in itertools.pairwise(alike)):
        settings, others = _settings(one), _settings(other)
        fields = sorted({*settings, *others})
        differ = [field for field in fields if settings.get(field) != others.get(field)]
        if differ != ['seed']:
            more = [field for field in differ if field != 'seed']
            what = f'differ in {more[0]}' if more else 'have the same seed'
            raise UserError(
                f'The runs {one.name} and {other.name} in {directory} are of one row but {what}: '
                'move one of them away.'
            )
