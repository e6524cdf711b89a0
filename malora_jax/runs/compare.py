"""Comparison of runs: comparability checks, means over seeds and tasks, and paired differences.

The tables of a report have a row for the base model, and one for each group of runs that share
everything but their seed. The runs of a row may also be single-task runs, one for each task.

Dimension letters: S runs that differ in their seed, Q questions of a task.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from malora_jax.errors import UserError
from malora_jax.runs.loading import LoadedRun
from malora_jax.runs.paper import PaperRow, PaperTable
from malora_jax.statistics import (
    Interval,
    PairedDifference,
    average_interval,
    paired_bootstrap,
    score_interval,
    seed_interval,
)
from malora_jax.training.config import field_defaults

BASE_ROW = 'base'
# Config fields that do not affect results, apart from rounding.
_IGNORED_FIELDS = (
    *('data.directory', 'data.workers', 'evaluation.batch_size', 'training.checkpoint_every'),
    *('training.keep_checkpoints', 'training.remat', 'model.attention'),
)
# Config fields that name the tasks of a run, or depend on them.
_TASK_FIELDS = ('data.tasks', 'data.weights', 'data.task_settings', 'evaluation.tasks')
# Config fields in which rows are expected to differ.
_ROW_FIELDS = ('seed', 'method', 'data.tasks', 'evaluation.tasks')
_RESULT_KEYS = {'score': 'after', 'loss': 'loss_after'}


@dataclasses.dataclass(frozen=True, eq=False)
class SeedGroup:
    """Runs of one row of a report: runs that differ only in their seed, or one run for each task.

    Attributes:
        name: Name of the row.
        tasks: Names of the tasks of the row.
        runs: Finished runs, at least one.
        is_base: Whether the row is that of the base model. Its scores and losses are those that
            the runs measured before training.
        paper: Row of the paper's table that corresponds to this row; None if there is none.

    Example:
        group = SeedGroup('malora', ['piqa'], read_runs([pathlib.Path('runs/malora-seed0')]))
        mean, interval = group.score('piqa')
    """

    name: str
    tasks: Sequence[str]
    runs: Sequence[LoadedRun]
    is_base: bool = False
    paper: PaperRow | None = None

    @property
    def label(self) -> str:
        """Name of the row in tables: the paper's name if there is one, else `name`."""
        return self.paper.label if self.paper else self.name

    @property
    def method(self) -> str:
        """Name of the method; '' for the base model."""
        return '' if self.is_base else self.runs[0].method

    @property
    def is_single_task(self) -> bool:
        """True if each run is trained on one task."""
        return not self.is_base and self.runs[0].is_single_task

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameter counts of base model and adapter, as `count_model_parameters` returns them."""
        return self.runs[0].parameters

    def by_seed(self, metric: str, task: str = '') -> dict[int, float]:
        """Return the score or loss after training, by seed. The numbers are from `results.json`.

        The result is empty for the base model. A mean over tasks omits seeds that lack a task.

        Args:
            metric: 'score' or 'loss'.
            task: Name of a task; '' for the mean over tasks.
        """
        values_by_seed: dict[int, list[float]] = {}
        for run in () if self.is_base else self.runs:
            for name, result in run.results['tasks'].items():
                if task in ('', name):
                    values_by_seed.setdefault(run.seed, []).append(result[_RESULT_KEYS[metric]])
        num_tasks = 1 if task else len(self.tasks)
        return {
            s: float(np.mean(v)) for s, v in sorted(values_by_seed.items()) if len(v) == num_tasks
        }

    def mean_over_seeds(self, metric: str, task: str = '') -> float:
        """Return the mean over seeds of `by_seed`.

        Args:
            metric: 'score' or 'loss'.
            task: Name of a task; '' for the mean over tasks.
        """
        return float(np.mean([*self.by_seed(metric, task).values()]))

    def interval_over_seeds(self, metric: str, task: str = '') -> Interval | None:
        """Return the 95% confidence interval of the mean over seeds; None with a single seed.

        Args:
            metric: 'score' or 'loss'.
            task: Name of a task; '' for the mean over tasks.
        """
        return seed_interval([*self.by_seed(metric, task).values()])

    @functools.cached_property
    def _answers(self) -> Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]:
        """Scored answers by task, then by run.

        The base model has only the answers from the first run, because all runs have the same base
        model.
        """
        answers_by_task: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
        for run in self.runs:
            answers = run.answers_before if self.is_base else run.answers_after
            for task in run.results['tasks']:
                answers_by_task.setdefault(task, []).append(
                    [a for a in answers if a['task'] == task]
                )
        return {task: each[:1] if self.is_base else each for task, each in answers_by_task.items()}

    @functools.cached_property
    def scores(self) -> Mapping[str, np.ndarray]:
        """Score of each answer by task, (S, Q) for S runs; tasks without scores are omitted."""
        return {task: self._array(task, 'score') for task in self.tasks if task in self._answers}

    @functools.cached_property
    def losses(self) -> Mapping[str, np.ndarray]:
        """Loss of each right answer by task, (S, Q) for S runs; tasks without scores are omitted.

        A loss is in nats, divided by the run's mean number of tokens per answer. The mean of these
        losses is therefore the loss per token of the run.
        """
        found = {}
        for task in self.scores:
            tokens_SQ = self._array(task, 'tokens')
            found[task] = self._array(task, 'nats') / tokens_SQ.mean(axis=1, keepdims=True)
        return found

    def _array(self, task: str, field: str) -> np.ndarray:
        return np.array([[answer[field] for answer in run] for run in self._answers[task]])

    @property
    def has_all_scores(self) -> bool:
        """True if every task is scored, as averages need."""
        return self.scores.keys() == {*self.tasks}

    def score(self, task: str) -> tuple[float, Interval] | None:
        """Return the mean score on a task, and its 95% confidence interval over questions.

        Args:
            task: Name of the task.

        Returns:
            Mean and interval; None if the task is not scored.
        """
        if task not in self.scores:
            return None
        scores_SQ = self.scores[task]
        return float(scores_SQ.mean()), score_interval(scores_SQ)

    def average_score(self) -> tuple[float, Interval] | None:
        """Return the mean score over tasks, and its 95% confidence interval over questions.

        The result is None unless every task is scored.
        """
        if not self.has_all_scores:
            return None
        mean = float(np.mean([scores.mean() for scores in self.scores.values()]))
        return mean, average_interval(self.scores)

    def average_loss(self) -> float | None:
        """Return the mean loss over tasks in nats per token; None unless every task is scored."""
        if not self.has_all_scores:
            return None
        return float(np.mean([losses.mean() for losses in self.losses.values()]))

    def average_difference(
        self, other: 'SeedGroup', metric: str = 'score'
    ) -> PairedDifference | None:
        """Return the difference of the averages over tasks, paired by question.

        Args:
            other: Row to subtract.
            metric: 'score' or 'loss'.

        Returns:
            Average of this row minus that of `other`. None if either row has a task without
            scores, or if the rows are scored on different questions.
        """
        if not (self.has_all_scores and other.has_all_scores and self._is_paired_with(other)):
            return None
        arrays = (self.scores, other.scores) if metric == 'score' else (self.losses, other.losses)
        return paired_bootstrap(*arrays)

    def task_differences(self, other: 'SeedGroup') -> dict[str, PairedDifference]:
        """Return the difference of the scores on each task that both rows have, paired by question.

        Args:
            other: Row whose scores are subtracted.
        """
        return {
            task: paired_bootstrap({task: self.scores[task]}, {task: other.scores[task]})
            for task in self.tasks_paired_with(other)
        }

    def tasks_paired_with(self, other: 'SeedGroup') -> list[str]:
        """Return the tasks on which both rows have scores of the same questions."""
        if not self._is_paired_with(other):
            return []
        return [task for task in self.scores if task in other.scores]

    def _is_paired_with(self, other: 'SeedGroup') -> bool:
        return not any(_mismatch(*pair) for pair in itertools.product(self.runs, other.runs))


def check_comparable(runs: Sequence[LoadedRun]) -> None:
    """Check that scores and losses of runs are comparable.

    Example:
        check_comparable(read_runs([pathlib.Path('runs/malora'), pathlib.Path('runs/lora')]))

    Raises:
        UserError: Two runs differ in their base model or template, or in the held-out questions or
            the scoring of a task.
    """
    for one, other in itertools.combinations(runs, 2):
        mismatch = _mismatch(one, other)
        if mismatch:
            raise UserError(
                f'The runs {one.path} and {other.path} differ in their {mismatch}: they cannot be '
                'compared.'
            )


def _mismatch(one: LoadedRun, other: LoadedRun) -> str:
    """Return the first property that makes two runs incomparable; '' if they are comparable.

    Only properties that both runs record are compared.
    """
    if one is other:
        return ''
    shared = (what for what in one.evaluation_setup if what in other.evaluation_setup)
    return next(
        (what for what in shared if one.evaluation_setup[what] != other.evaluation_setup[what]), ''
    )


def seed_groups(runs: Sequence[LoadedRun], table: PaperTable | None = None) -> list[SeedGroup]:
    """Group finished runs into rows: the base model, the paper's rows in its order, then others.

    A run that belongs to no row of the paper gets a row that is named after its directory, without
    the suffix `-seedN`. Single-task runs with directories named NAME-TASK share the row
    NAME_single. Without a table, runs that do not belong in one row get rows of their own.

    Example:
        groups = seed_groups(read_runs([pathlib.Path('runs/table2')]), PAPER_TABLES['table2'])

    Args:
        runs: Finished runs, at least one.
        table: Table of the paper that the runs reproduce; None for no table. With a table, each row
            has the tasks of the table, and the runs must be comparable.

    Raises:
        UserError: There is a table, and one of these is true: a run is not scored on the table's
            tasks; a run has the name of a row of the table, but another adapter; two runs are not
            comparable; or two runs of a row differ in more than seed and tasks, or have the same
            seed and tasks.
    """
    tasks = [*table.tasks] if table else _scored_tasks(runs)
    grouped: dict[str, list[LoadedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.name)) if table else runs:
        grouped.setdefault(_row_name(run, table), []).append(run)
    if table:
        check_comparable(runs)
        names = [*table.rows, *sorted(grouped.keys() - table.rows.keys())]
        for members in grouped.values():
            _check_row(members)
    else:
        grouped = dict(_split_mixed_rows(grouped))
        names = [*grouped]
    run_by_task = {task: run for run in reversed(runs) for task in _scored_tasks([run])}
    base_runs = [run for run in runs if run in run_by_task.values()]
    paper = table.rows if table else {}
    return [
        SeedGroup(BASE_ROW, tasks, base_runs, is_base=True, paper=paper.get(BASE_ROW)),
        *(
            SeedGroup(name, tasks, grouped[name], paper=paper.get(name))
            for name in names
            if name in grouped
        ),
    ]


def single_task_rows(groups: Sequence[SeedGroup], group: SeedGroup) -> dict[str, SeedGroup]:
    """Return, for each task, the single-task row that a multi-task row is compared with.

    A single-task row of the same method is preferred to one of LoRA; other methods are not used.
    Both rows must be scored on the same questions. Tasks without such a single-task row are
    omitted.

    Args:
        groups: Rows of the report, among them the single-task rows.
        group: Multi-task row to compare. For any other row the result is empty.
    """
    if group.is_single_task or group.is_base:
        return {}
    singles = [
        other
        for method in (group.method, 'lora')
        for other in groups
        if other.is_single_task and other.method == method
    ]
    rows: dict[str, SeedGroup] = {}
    for other in singles:
        for task in other.tasks_paired_with(group):
            rows.setdefault(task, other)
    return {task: rows[task] for task in group.tasks if task in rows}


def differing_fields(groups: Sequence[SeedGroup]) -> dict[str, dict[str, list[str]]]:
    """Return the config fields in which rows differ besides method, adapter, seed and tasks.

    Returns:
        For each field, a dict from each of its values (as the `repr` string) to the names of the
        rows that have this value.
    """
    settings = {
        group.name: _relevant_fields(group.runs[0]) for group in groups if not group.is_base
    }
    differing = {}
    for field in sorted({field for fields in settings.values() for field in fields}):
        values: dict[str, list[str]] = {}
        for name, fields in settings.items():
            values.setdefault(repr(fields.get(field)), []).append(name)
        if len(values) > 1 and field not in _ROW_FIELDS and not field.startswith('adapter.'):
            differing[field] = values
    return differing


def _scored_tasks(runs: Sequence[LoadedRun]) -> list[str]:
    return [*dict.fromkeys(task for run in runs for task in run.results['tasks'])]


def _row_name(run: LoadedRun, table: PaperTable | None) -> str:
    """Return the name of a run's row.

    It is the name of the matching row of `table`. Without a matching row, the name is derived from
    the run's directory.
    """
    tasks, single = {*run.results['tasks']}, run.is_single_task
    name = re.sub(r'-seed\d+$', '', run.name)
    if single:
        # A task may be trained on another dataset than it is scored on.
        short = name.removesuffix(f'-{min(tasks)}')
        name = f'{short}_single' if short != name else name
    if table is None:
        return name
    if not (len(tasks) == 1 and tasks <= {*table.tasks} if single else tasks == {*table.tasks}):
        raise UserError(
            f'The run {run.path} is scored on {", ".join(sorted(tasks))}; for {table.title}, it '
            f'must be {"one" if single else "all"} of {", ".join(table.tasks)}.'
        )
    row = table.row_of(run.raw_config)
    if row:
        return row
    if name in table.rows or name == BASE_ROW:
        raise UserError(
            f'The run {run.path} has another adapter than the row {name} of {table.title}: rename '
            'its directory to give it a row of its own.'
        )
    return name


def _split_mixed_rows(
    grouped: Mapping[str, Sequence[LoadedRun]],
) -> list[tuple[str, list[LoadedRun]]]:
    """Return rows of runs that belong together.

    The runs of a group belong together if they differ only in seed and tasks and are comparable.
    Otherwise, each run of the group gets a row of its own, named after the run.

    Args:
        grouped: Runs by name of the row.
    """
    rows = []
    for name, members in grouped.items():
        try:
            _check_row(members)
            check_comparable(members)
            rows.append((name, [*members]))
        except UserError:
            rows += [(run.name, [run]) for run in members]
    return rows


def _relevant_fields(run: LoadedRun) -> dict[str, Any]:
    """Return the config fields that affect the results of a run, by their dotted names."""
    fields = field_defaults() | flatten_dict(dict(run.raw_config), sep='.')
    return {field: value for field, value in fields.items() if field not in _IGNORED_FIELDS}


def _check_row(runs: Sequence[LoadedRun]) -> None:
    """Check that runs may share a row: they must differ only in their seed and their tasks.

    Raises:
        UserError: Two runs differ in another config field, or have the same seed and tasks.
    """
    with_settings = [(run, _relevant_fields(run)) for run in runs]
    for (one, settings), (other, others) in itertools.combinations(with_settings, 2):
        same_tasks = one.results['tasks'].keys() == other.results['tasks'].keys()
        ignored = {'seed'} if same_tasks else {'seed', *_TASK_FIELDS}
        fields = sorted({*settings, *others} - ignored)
        differ = [field for field in fields if settings.get(field) != others.get(field)]
        if not differ and not (same_tasks and settings['seed'] == others['seed']):
            continue
        what = f'differ in {differ[0]}' if differ else 'have the same seed'
        raise UserError(
            f'The runs {one.path} and {other.path} belong to the same row, but {what}: move one of '
            'them to another directory.'
        )
