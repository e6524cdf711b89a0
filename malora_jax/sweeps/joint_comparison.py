"""Comparison of a joint step of several runs with steps of a single run: time and memory."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from malora_jax.sweeps.joint_groups import with_largest_ranks
from malora_jax.sweeps.padding import pad_and_stack
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.step import Batch, compiled_memory_bytes, lower_train_step

# Number of timed steps, after an untimed warm-up step.
_STEPS = 3


class JointStepCosts(NamedTuple):
    """Time and memory of a joint step of several runs, and of a single run's step.

    Attributes:
        runs: Number of runs that train jointly.
        joint_s: Seconds of a joint step.
        single_s: Seconds of a single run's step.
        joint_bytes: Memory of the joint step in bytes, as the compiler estimates it.
        single_bytes: Memory of a single run's step in bytes.
        tokens: Number of token positions in a single run's step.
    """

    runs: int
    joint_s: float
    single_s: float
    joint_bytes: int
    single_bytes: int
    tokens: int

    @property
    def is_faster(self) -> bool:
        """True if joint training is faster than one run after the other."""
        return self.joint_s < self.runs * self.single_s

    def __str__(self) -> str:
        speed = self.runs * self.tokens / self.joint_s
        alone = self.tokens / self.single_s
        return (
            f'Joint training of {self.runs} runs: {speed:,.0f} tokens/s, '
            f'{self.joint_bytes / 1e9:.2f} GB. A single run: {alone:,.0f} tokens/s, '
            f'{self.single_bytes / 1e9:.2f} GB. Joint training takes '
            f'{self.joint_s / (self.runs * self.single_s):.2f} of the time of sequential training '
            f'and {self.joint_bytes / (self.runs * self.single_bytes):.2f} of the memory of '
            f'{self.runs} processes.'
        )


def measure_joint_step(
    setups: Sequence[Setup], states: list[TrainState]
) -> tuple[JointStepCosts, jax.stages.Compiled]:
    """Measure the joint step of runs, and the single step of the run with the largest rank.

    Args:
        setups: Setup of each run.
        states: Training state of each run. The list is emptied to free the memory of the states.

    Returns:
        The measurements, and the compiled joint step.
    """
    setup, state = max(
        zip(setups, states, strict=True), key=lambda each: each[0].run.adapter.structure.rank
    )
    stacked, hyperparameters = (
        pad_and_stack(states),
        pad_and_stack([each.hyperparameters for each in setups]),
    )
    states.clear()
    run, rows = with_largest_ranks([each.run for each in setups]), next(setup.train_iterator())
    many_rows = {name: np.stack([array] * len(setups)) for name, array in rows.items()}
    _, single_s, single_bytes = _measure_step(setup, setup.run, state, setup.hyperparameters, rows)
    step, joint_s, joint_bytes = _measure_step(setup, run, stacked, hyperparameters, many_rows)
    sizes = (joint_bytes, single_bytes, rows['inputs'].size)
    return JointStepCosts(len(setups), joint_s, single_s, *sizes), step


def _measure_step(
    setup: Setup, run: RunConfig, state: TrainState, hyperparameters: Hyperparameters, rows: Batch
) -> tuple[jax.stages.Compiled, float, int]:
    """Return a compiled step, its shortest time in seconds, and its memory in bytes.

    The shortest time is used because other programs can only make a step slower.
    """
    params = setup.base.params
    sizes = (setup.steps, len(setup.splits))
    step, times = lower_train_step(run, *sizes, state, params, hyperparameters).compile(), []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        state, metrics = step(state, params, rows, hyperparameters)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return step, min(times[1:]), compiled_memory_bytes(step)
