"""Training loop over the steps of several runs at once.

The states of all runs are stacked, and one compiled step updates the whole stack. Each run reports,
evaluates and saves its own state. The runs may be at different steps, for example after an
interruption. A run that has finished or failed stays in the stack, and its further results are
discarded. Once at most half of the runs are active, a smaller stack of the active runs replaces it.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from malora_jax.distributed import hosts
from malora_jax.progress import ProgressBar
from malora_jax.sweeps.joint_groups import with_largest_ranks
from malora_jax.sweeps.padding import pad_and_stack, take, unpad
from malora_jax.training.preemption import Preempted, PreemptionWatcher
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.state import TrainState
from malora_jax.training.step import lower_train_step
from malora_jax.training.validation import VALIDATION_LOSS


@dataclasses.dataclass(eq=False)
class JointRun:
    """A run that trains jointly with others.

    Attributes:
        progress: Progress of the run.
        state: Training state before the first and after the last step of the loop; None in between.
        error: Error message if the run failed, else ''.
        batch: Batch of its newest step.
    """

    progress: RunProgress
    state: TrainState | None
    error: str = ''
    batch: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """True if the run has not failed and has steps left."""
        return not (self.error or self.progress.is_at_end)


class JointLoop:
    """Trains several runs at once: one compiled step updates the stacked states of all runs."""

    def __init__(
        self,
        runs: Sequence[JointRun],
        preemption: PreemptionWatcher,
        step: jax.stages.Compiled | None = None,
    ):
        """Create the loop.

        Args:
            runs: Runs of one group of `joint_groups`.
            preemption: Watcher for requests to stop.
            step: Compiled step of all runs; None to compile it in `train`.
        """
        self._runs = list(runs)
        self._states: Any = None
        self._step: Any = step
        self._preemption = preemption

    def train(self) -> None:
        """Train all runs until they finish.

        Raises:
            Preempted: SIGTERM arrived; the step in progress is finished and saved.
        """
        active = [run for run in self._runs if run.is_active]
        if not active:
            return
        steps = sum(run.progress.setup.steps for run in active)
        done = sum(run.progress.step for run in active)
        with hosts.progress_bar('train together', steps, 'step', done) as bar:
            self._stack(active, self._step if len(active) == len(self._runs) else None)
            bar.update(done)
            with self._preemption.defer_sigterm():
                self._train(bar)

    def _train(self, bar: ProgressBar) -> None:
        # Step number of each run whose step has started and is not reported yet; `metrics` holds
        # the stacked metrics of these steps.
        unreported: dict[JointRun, int] = {}
        metrics: Any = None
        while any(run.is_active for run in self._runs):
            if not unreported:
                self._remove_inactive()
                for run in self._runs:
                    run.progress.start_clock()
            started, new_metrics = self._start_step()
            self._report(bar, unreported, metrics)
            unreported, metrics = started, new_metrics
            bar.advance(len(started))
            is_stopping = self._preemption.should_stop(max(started.values()))
            if is_stopping or any(run.progress.is_eval_or_save_due for run in started):
                self._report(bar, started, metrics)
                self._save(started, is_stopping)
                unreported = {}
            if is_stopping:
                bar.write('Stopped by SIGTERM after a step, which is saved.')
                raise Preempted

    def _start_step(self) -> tuple[dict[JointRun, int], Any]:
        """Start a step; return each active run's step number, and the stacked metrics."""
        active = [run for run in self._runs if run.is_active]
        for run in active:  # Inactive runs repeat their last batch.
            run.batch = run.progress.next_batch()
            run.progress.start_step()
        rows = jax.tree.map(lambda *arrays: np.stack(arrays), *[run.batch for run in self._runs])
        params = self._runs[0].progress.setup.base.params
        self._states, metrics = self._step(self._states, params, rows, self._hyperparameters)
        return {run: run.progress.step for run in active}, metrics

    def _report(self, bar: ProgressBar, steps: Mapping[JointRun, int], metrics: Any) -> None:
        """Report the metrics of a step of each run, and evaluate the runs for which that is due.

        A run is evaluated only if `steps` has its newest step. Otherwise a newer step has started,
        and has already changed the state of the run.

        Args:
            bar: Progress bar, above which validation losses are printed.
            steps: Number of the step to report, by run.
            metrics: Stacked metrics of these steps.
        """
        host_metrics = jax.device_get(metrics)
        for run, number in steps.items():
            if not run.error:
                is_due = number == run.progress.step and run.progress.is_eval_or_save_due
                state = self._state(run) if is_due else None
                step_metrics = take(host_metrics, self._runs.index(run))
                try:
                    record = run.progress.report(number, step_metrics, state)
                except FloatingPointError as error:
                    run.error = str(error)
                    continue
                if VALIDATION_LOSS in record:
                    bar.write(
                        f'{run.progress.workdir.name}: step {number}, validation loss '
                        f'{record[VALIDATION_LOSS]:.4f}.'
                    )

    def _save(self, runs: Iterable[JointRun], is_stopping: bool) -> None:
        for run in runs:
            if not run.error and (is_stopping or run.progress.is_eval_or_save_due):
                state = self._state(run)
                run.progress.save(state, is_stopping)
                run.state = state if run.progress.is_at_end else None

    def _state(self, run: JointRun) -> TrainState:
        return unpad(take(self._states, self._runs.index(run)), self._shapes[run])

    def _remove_inactive(self) -> None:
        """Remove finished and failed runs from the stack, if they are at least half of its runs."""
        active = [run for run in self._runs if run.is_active]
        if 2 * len(active) <= len(self._runs):
            for run in active:
                run.state = self._state(run)
            self._states = None  # Frees memory.
            self._stack(active)

    def _stack(self, runs: list[JointRun], step: jax.stages.Compiled | None = None) -> None:
        """Stack the states of runs, and compile their step unless it is given."""
        self._runs, setups = runs, [run.progress.setup for run in runs]
        self._shapes = {run: jax.eval_shape(lambda state: state, run.state) for run in runs}
        self._hyperparameters = pad_and_stack([setup.hyperparameters for setup in setups])
        self._states = pad_and_stack([run.state for run in runs])
        config, setup = with_largest_ranks([setup.run for setup in setups]), setups[0]
        with contextlib.ExitStack() as phases:
            for run in runs:
                run.state = None  # Frees memory.
                phases.enter_context(run.progress.goodput.phase('compile'))
            sizes, arrays = (setup.steps, len(setup.splits)), (self._states, setup.base.params)
            self._step = (
                step or lower_train_step(config, *sizes, *arrays, self._hyperparameters).compile()
            )
