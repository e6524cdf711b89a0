"""A group of runs that differ only in their seed: means, intervals and paired differences.

Dimension letters: S runs that differ in their seed, Q questions of a task.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.runs.loading import LoadedRun
from malora_jax.runs.paper import PaperRow
from malora_jax.statistics import (
    Interval,
    PairedDifference,
    average_interval,
    hierarchical_bootstrap,
    paired_bootstrap,
    score_interval,
    seed_interval,
)

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

    def difference_over_seeds(
        self, other: 'SeedGroup', metric: str = 'score', tasks: Sequence[str] = ()
    ) -> PairedDifference | None:
        """Return the difference of the averages over tasks, paired by seed and question.

        Its interval includes the variation between seeds, unlike that of `average_difference`, and
        the questions may differ between seeds.

        Args:
            other: Row to subtract.
            metric: 'score' or 'loss'.
            tasks: Names of the tasks to average over; () for all tasks of this row.

        Returns:
            Average of this row minus that of `other`, over the seeds that both have. None if there
            is no such seed, or if the rows of a seed are scored on different questions.
        """
        differences = self.differences_by_seed(other, metric, tasks)
        return hierarchical_bootstrap([*differences.values()]) if differences else None

    def differences_by_seed(
        self, other: 'SeedGroup', metric: str = 'score', tasks: Sequence[str] = ()
    ) -> dict[int, dict[str, np.ndarray]]:
        """Return the difference on each question, by seed and task.

        Args:
            other: Row to subtract.
            metric: 'score' or 'loss'.
            tasks: Names of the tasks; () for all tasks of this row.

        Returns:
            For each seed that both rows have, ascending: (Q,) differences by task. The result is
            empty if the rows of a seed are scored on different questions.
        """
        ours, theirs = self._values_by_seed(metric), other._values_by_seed(metric)
        required = tasks or self.tasks
        pairs = itertools.product(self.runs, other.runs)
        if any(mismatch(*pair) for pair in pairs if pair[0].seed == pair[1].seed):
            return {}
        return {
            seed: {task: ours[seed][task] - theirs[seed][task] for task in required}
            for seed in sorted(ours.keys() & theirs.keys())
            if {*required} <= ours[seed].keys() & theirs[seed].keys()
        }

    def _values_by_seed(self, metric: str) -> dict[int, dict[str, np.ndarray]]:
        """Return the (Q,) scores or losses of the answers, by seed and task."""
        found: dict[int, dict[str, np.ndarray]] = {}
        values = self.scores if metric == 'score' else self.losses
        for task, values_SQ in values.items():
            seeds = [run.seed for run in self.runs if task in run.results['tasks']]
            for seed, values_Q in zip(seeds, values_SQ, strict=True):
                found.setdefault(seed, {})[task] = values_Q
        return found

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
        return not any(mismatch(*pair) for pair in itertools.product(self.runs, other.runs))


def mismatch(one: LoadedRun, other: LoadedRun) -> str:
    """Return the first property that makes two runs incomparable; '' if they are comparable.

    Only properties that both runs record are compared.
    """
    if one is other:
        return ''
    shared = (what for what in one.evaluation_setup if what in other.evaluation_setup)
    return next(
        (what for what in shared if one.evaluation_setup[what] != other.evaluation_setup[what]), ''
    )
