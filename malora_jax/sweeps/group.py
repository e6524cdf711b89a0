"""The steps of several runs at once, each of which reports, evaluates and saves by itself.

Runs may be at different steps, as after an interruption. One that is at its end, or has failed,
goes on being computed for nothing until half of them have, and then the others are put together
anew.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from malora_jax.sweeps.padding import cut, pad, shapes
from malora_jax.sweeps.replica import Replica
from malora_jax.sweeps.step import Values, lowered_step, stack, take
from malora_jax.training.config import RunConfig
from malora_jax.training.preemption import Preempted, Preemption
from malora_jax.training.state import TrainState

# Steps that are made, with their metrics: of each run its number among the stacked ones.
_Made = list[tuple[Replica, int, int]]


class Group:
    """Runs that train together."""

    def __init__(
        self,
        run: RunConfig,
        whole: TrainState,
        replicas: Sequence[Replica],
        states: Sequence[TrainState],
        values: Values,
        preemption: Preemption,
        step: jax.stages.Compiled | None = None,
    ):
        """Puts them together.

        Args:
            run: what they share, as `traced.common` has it.
            whole: the shapes of its state, to which those of smaller ranks are padded.
            replicas: the runs.
            states: that they go on from.
            values: what they differ in, by name.
            preemption: whether all are to stop.
            step: of all of them, if it is compiled already.
        """
        self._run, self._params = run, replicas[0].setup.base.params
        self._preemption = preemption
        going = [number for number, replica in enumerate(replicas) if replica.goes_on]
        self._replicas = [replicas[number] for number in going]
        self._values = take(values, np.array(going, int))
        if going:
            self._shapes = {replicas[number].name: shapes(states[number]) for number in going}
            self._states = stack([pad(states[number], whole) for number in going])
            if step is None or len(going) < len(replicas):
                step = self._compiled()
            self._step = step

    def _compiled(self) -> jax.stages.Compiled:
        setup = self._replicas[0].setup
        with self._phase('compile'):
            return lowered_step(
                *(self._run, setup.steps, len(setup.splits)),
                *(self._states, self._params, self._values),
            ).compile()

    def train(self) -> None:
        """Makes all steps.

        Raises:
            Preempted: SIGTERM came; the step that was at work is done and saved.
        """
        steps = sum(r.setup.steps for r in self._replicas)
        done = sum(r.step for r in self._replicas)
        bar = tqdm.tqdm(total=steps, initial=done, desc='train together', unit='step')
        made: _Made = []
        metrics: Any = None
        with self._preemption.deferred(), bar:
            self._start_clocks()
            while any(replica.goes_on for replica in self._replicas):
                new_metrics, new = self._make_steps()
                self._report(made, metrics, is_newest=False)
                made, metrics = new, new_metrics
                bar.update(len(made))
                stops = self._preemption.reached(max(r.step for r in self._replicas))
                if stops or any(replica.is_due for replica, _, _ in made):
                    self._report(made, metrics, is_newest=True)
                    self._save(made, stops)
                    made = []
                    if stops:
                        print('Stopped by SIGTERM after a step, which is saved.')
                        raise Preempted
                    self._leave_out()
                    self._start_clocks()

    def _make_steps(self) -> tuple[Any, _Made]:
        """A step of each that goes on: metrics, stacked, and whose they are."""
        batches = [replica.next_batch() for replica in self._replicas]
        rows = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        made: _Made = []
        for index, replica in enumerate(self._replicas):
            if replica.goes_on:
                replica.begin()
                made.append((replica, replica.step, index))
        self._states, metrics = self._step(self._states, self._params, rows, self._values)
        return metrics, made

    def _report(self, made: _Made, metrics: Any, is_newest: bool) -> None:
        """Reports steps; after the newest, evaluates the states that are due."""
        if not made:
            return
        found = jax.device_get(metrics)
        for replica, number, index in made:
            if replica.goes_on:
                is_due = is_newest and replica.is_due
                state = self._state(replica, index) if is_due else None
                replica.report(number, take(found, index), state)

    def _save(self, made: _Made, stops: bool) -> None:
        for replica, _, index in made:
            if replica.goes_on and (stops or replica.is_due):
                replica.save(self._state(replica, index), stops)

    def _state(self, replica: Replica, index: int) -> TrainState:
        """Of one run, in its own shapes."""
        return cut(take(self._states, index), self._shapes[replica.name])

    def _leave_out(self) -> None:
        """Leaves out those that are at their end, once they are half of all."""
        going = [index for index, replica in enumerate(self._replicas) if replica.goes_on]
        if not going or 2 * len(going) > len(self._replicas):
            return
        self._replicas = [self._replicas[index] for index in going]
        self._states, self._values = (
            take(tree, np.array(going)) for tree in (self._states, self._values)
        )
        self._step = self._compiled()

    def _start_clocks(self) -> None:
        for replica in self._replicas:
            replica.start_clock()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        with contextlib.ExitStack() as phases:
            for replica in self._replicas:
                phases.enter_context(replica.goodput.phase(name))
            yield
