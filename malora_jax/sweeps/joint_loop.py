"""The loop over the steps of several runs at once.

Each run reports, evaluates and saves by itself. The runs may be at different steps, as after an
interruption. A run that is at its end or has failed is still computed, in vain, until half of the
runs are; then the others are stacked anew.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from malora_jax.sweeps.joint_groups import with_largest_ranks
from malora_jax.sweeps.padding import cut, stack, take
from malora_jax.training.preemption import Preempted, Preemption
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.state import TrainState
from malora_jax.training.step import lowered_step


@dataclasses.dataclass
class JointRun:
    """One of the runs that train jointly.

    Attributes:
        progress: Its progress.
        state: Its state before the first and after the last step of the loop; None in between.
        error: Why it failed; '' if it did not.
    """

    progress: RunProgress
    state: TrainState | None
    error: str = ''

    @property
    def is_active(self) -> bool:
        """Whether the run has steps left."""
        return not (self.error or self.progress.is_at_end)


# A step of a run that was started: the run, the number of the step, the run's place in the stack.
_Step = tuple[JointRun, int, int]


class JointLoop:
    """Trains several runs by one step over their stacked states."""

    def __init__(
        self,
        runs: Sequence[JointRun],
        preemption: Preemption,
        step: jax.stages.Compiled | None = None,
    ):
        """Stack the states of the runs that have steps left.

        Args:
            runs: Runs of one of the `joint_groups`.
            preemption: Whether the runs are asked to stop.
            step: The step of all runs, if it is compiled already.
        """
        self._preemption = preemption
        self._runs = [run for run in runs if run.is_active]
        if not self._runs:
            return
        setups = [run.progress.setup for run in self._runs]
        self._config = with_largest_ranks([setup.run for setup in setups])
        self._shapes = {
            run.progress.workdir: jax.eval_shape(lambda state: state, run.state)
            for run in self._runs
        }
        self._states = stack([run.state for run in self._runs])
        for run in self._runs:
            run.state = None  # Frees its memory.
        self._hyperparameters = stack([setup.hyperparameters for setup in setups])
        self._batches: list[Any] = [None] * len(self._runs)
        self._step = step if step and len(self._runs) == len(runs) else self._compiled()

    def train(self) -> None:
        """Train all runs to their ends.

        Raises:
            Preempted: SIGTERM came; the step in progress is finished and saved.
        """
        steps = sum(run.progress.setup.steps for run in self._runs)
        done = sum(run.progress.step for run in self._runs)
        bar = tqdm.tqdm(total=steps, initial=done, desc='train together', unit='step')
        unreported: list[_Step] = []
        metrics: Any = None
        with self._preemption.deferred(), bar:
            while any(run.is_active for run in self._runs):
                if not unreported:
                    self._remove_inactive()
                    for run in self._runs:
                        run.progress.start_clock()
                started, new_metrics = self._start_step()
                self._report(unreported, metrics)
                unreported, metrics = started, new_metrics
                bar.update(len(started))
                stops = self._preemption.reached(max(number for _, number, _ in started))
                if stops or any(run.progress.is_due for run, _, _ in started):
                    self._report(started, metrics)
                    self._save(started, stops)
                    unreported = []
                if stops:
                    print('Stopped by SIGTERM after a step, which is saved.')
                    raise Preempted

    def _start_step(self) -> tuple[list[_Step], Any]:
        """Start the next step of each active run; return them and their stacked metrics."""
        started = []
        for index, run in enumerate(self._runs):
            if run.is_active:  # Any other run repeats its last batch; the result is not used.
                self._batches[index] = run.progress.next_batch()
                run.progress.start_step()
                started.append((run, run.progress.step, index))
        rows = jax.tree.map(lambda *arrays: np.stack(arrays), *self._batches)
        params = self._runs[0].progress.setup.base.params
        self._states, metrics = self._step(self._states, params, rows, self._hyperparameters)
        return started, metrics

    def _report(self, steps: Sequence[_Step], metrics: Any) -> None:
        """Report steps; evaluate the states that are due, if no newer step was started."""
        found = jax.device_get(metrics)
        for run, number, index in steps:
            if not run.error:
                is_due = number == run.progress.step and run.progress.is_due
                state = self._state(run, index) if is_due else None
                try:
                    run.progress.report(number, take(found, index), state)
                except FloatingPointError as error:
                    run.error = str(error)

    def _save(self, steps: Sequence[_Step], stops: bool) -> None:
        for run, _, index in steps:
            if not run.error and (stops or run.progress.is_due):
                state = self._state(run, index)
                run.progress.save(state, stops)
                run.state = state if run.progress.is_at_end else None

    def _state(self, run: JointRun, index: int) -> TrainState:
        return cut(take(self._states, index), self._shapes[run.progress.workdir])

    def _remove_inactive(self) -> None:
        """Stack the active runs anew once they are at most half of all."""
        active = [index for index, run in enumerate(self._runs) if run.is_active]
        if 2 * len(active) <= len(self._runs):
            self._runs = [self._runs[index] for index in active]
            self._batches = [self._batches[index] for index in active]
            self._states = take(self._states, np.array(active))
            self._hyperparameters = take(self._hyperparameters, np.array(active))
            self._step = self._compiled()

    def _compiled(self) -> jax.stages.Compiled:
        setup = self._runs[0].progress.setup
        sizes, params = (setup.steps, len(setup.splits)), setup.base.params
        with contextlib.ExitStack() as phases:
            for run in self._runs:
                phases.enter_context(run.progress.goodput.phase('compile'))
            return lowered_step(
                self._config, *sizes, self._states, params, self._hyperparameters
            ).compile()
