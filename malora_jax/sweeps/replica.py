"""One of several runs that train together: its directory, data, reports and saves."""

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm

from malora_jax.training import loop
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.goodput import Goodput
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.preemption import Preemption
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.trainer import Trainer
from malora_jax.training.workdir import RunDirectory


class Replica(Trainer):
    """What a run does around its steps, which are made elsewhere, with those of others.

    Attributes:
        name: of the run.
        workdir: its directory.
        goodput: where its time goes.
        step: optimizer steps that were made and are to be reported.
        state: at its end; None before.
        error: why it failed.
    """

    def __init__(
        self,
        setup: Setup,
        workdir: pathlib.Path,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        goodput: Goodput,
        preemption: Preemption,
        state: TrainState,
        data: Any,
    ):
        """A run that goes on from a state, with its data as far as that."""
        super().__init__(setup, writer, checkpoints, goodput, preemption)
        self.name, self.workdir, self.goodput = workdir.name, workdir, goodput
        self.step = int(state.step)
        self._earlier = self._train_time
        self.error = ''
        self.state: TrainState | None = None
        self._data = data
        self._batch: Mapping[str, np.ndarray] | None = None
        # Shows nothing: several bars would be in each other's way.
        self._bar = tqdm.tqdm(disable=True)
        if self.is_at_end:
            self.state = state

    @property
    def is_at_end(self) -> bool:
        """Whether all steps are made, or patience is out."""
        return self.step >= self.setup.steps or self._is_out_of_patience()

    @property
    def goes_on(self) -> bool:
        """Whether it has steps to make."""
        return self.state is None and not self.error

    def next_batch(self) -> Mapping[str, np.ndarray]:
        """The rows of the next step; once it is at its end, the last ones, which are not used."""
        if self.goes_on or self._batch is None:
            with self.goodput.phase('data wait'):
                self._batch = next(self._data)
        return self._batch

    def begin(self) -> None:
        """A step begins."""
        self.step += 1
        self.goodput.step(self.step)

    def start_clock(self) -> None:
        """What has passed until now is no part of a step."""
        self._clock = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether the state after the step at hand is to be evaluated or saved."""
        return self._evaluates_after(self.step) or self._saves_after(self.step)

    def report(self, number: int, metrics: Any, state: TrainState | None = None) -> None:
        """Writes a step's metrics, with an evaluation of the state if that is due.

        What is not finite ends the run with its error.
        """
        try:
            self._report((number, metrics), self._bar, state)
        except FloatingPointError as error:
            self.error = str(error)

    def save(self, state: TrainState, stops: bool) -> None:
        """Saves the state that was just reported, if that is due; and keeps it if it is the last.

        Args:
            state: the state.
            stops: whether it is to be saved anyhow.
        """
        self._save(state, self._data, stops)
        if self.is_at_end:
            self.state = state

    def finish(self, started: float) -> None:
        """Scores and writes results.json.

        Args:
            started: when this start of the run began, by `time.perf_counter`.
        """
        assert self.state is not None
        best, state = self.checkpoints.best, self.checkpoints.best_state(self.state)
        records = self.writer.records
        began = started - self._earlier
        loop.finish(self.setup, self.workdir, state, records, best, self.goodput, began)

    def _show(self, record: Mapping[str, float], bar: tqdm.tqdm) -> None:
        """Nothing: metrics.jsonl has it."""


def open_replica(
    stack: contextlib.ExitStack,
    setup: Setup,
    fresh: TrainState,
    directory: RunDirectory,
    preemption: Preemption,
) -> tuple[Replica, TrainState]:
    """A run, and the state that it goes on from.

    Args:
        stack: closes its files.
        setup: the run's parts.
        fresh: a fresh state.
        directory: its directory, locked.
        preemption: whether all are to stop.

    Raises:
        UserError: the run began with another base, or its checkpoints are of another run.
    """
    goodput, data = Goodput(), setup.train_iterator()
    workdir = directory.path
    identity = loop.identified(setup, directory)
    state = loop.started(setup, fresh, directory)
    directory.begin(setup.run, identity)
    print(f'{workdir.name}: {setup.describe_drawing()}')
    goodput.open(workdir)
    stack.callback(goodput.close)
    keep = setup.run.training.keep_checkpoints
    checkpoints = stack.enter_context(Checkpoints(workdir / 'checkpoints', keep, identity))
    if checkpoints.latest_step:
        state = checkpoints.restore(state, data)
        print(f'Continuing {workdir} after step {int(state.step)}.')
    checkpoints.check_room(state)
    writer = stack.enter_context(MetricWriter(workdir, int(state.step)))
    return Replica(setup, workdir, writer, checkpoints, goodput, preemption, state, data), state
