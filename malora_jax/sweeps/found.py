"""Finished runs of a sweep put together by seed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.analysis.paper import TABLES, Row
from malora_jax.statistics import Interval, seed_interval
from malora_jax.sweeps.config import Report
from malora_jax.sweeps.expand import SweepRun

_AFTER = {'score': 'after', 'loss': 'loss_after'}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        runs: the finished ones.
        results: what is in their results.json.
    """

    runs: Sequence[SweepRun]
    results: Sequence[Mapping[str, Any]]

    @property
    def row(self) -> str:
        """What they are called."""
        return self.runs[0].row

    @property
    def variant(self) -> str:
        """The name in the sweep's `runs`."""
        return self.runs[0].variant

    @property
    def values(self) -> Mapping[str, Any]:
        """Of the fields that change."""
        return self.runs[0].values

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the first."""
        return self.runs[0].config

    @property
    def names(self) -> list[str]:
        """Of the runs."""
        return [run.name for run in self.runs]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.seed for run in self.runs]

    @property
    def tasks(self) -> list[str]:
        """What they are scored on."""
        return list(self.results[0]['tasks'])

    @property
    def parameters(self) -> int:
        """How many are trained."""
        return self.results[0]['parameters']['trainable']

    def by_seed(self, metric: str, task: str = '') -> list[float]:
        """Of each run, its 'score' or 'loss' on a task, or the mean over all tasks."""
        tasks = [task] if task else self.tasks
        return [
            float(np.mean([results['tasks'][name][_AFTER[metric]] for name in tasks]))
            for results in self.results
        ]

    def mean(self, metric: str, task: str = '') -> float:
        """The mean over seeds."""
        return float(np.mean(self.by_seed(metric, task)))

    def interval(self, metric: str, task: str = '') -> Interval | None:
        """Its interval for other seeds, if there are several."""
        return seed_interval(self.by_seed(metric, task))

    def paper(self, report: Report) -> Row | None:
        """The paper's row that is beside these runs: of the same tasks and adapter."""
        if not report.table:
            return None
        table = TABLES[report.table]
        name = table.row_of(self.config) if {*self.tasks} == {*table.tasks} else None
        return table.rows[name] if name else None


def groups(runs: Mapping[str, SweepRun], results: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The runs that have results, by row.

    Args:
        runs: by name.
        results: of the finished ones, by name.
    """
    rows = dict.fromkeys(run.row for name, run in runs.items() if name in results)
    found = []
    for row in rows:
        names = [name for name in results if runs[name].row == row]
        found.append(Group([runs[name] for name in names], [results[name] for name in names]))
    return found
