"""Comparison of a joint step of several runs with steps of a single run: time and memory."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from malora_jax.sweeps.joint_groups import with_largest_ranks
from malora_jax.sweeps.padding import stack
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.step import Batch, compiled_memory_bytes, lower_train_step

# Number of timed steps, after an untimed warm-up step.
_STEPS = 3


class Comparison(NamedTuple):
    """Measured step times and memory.

    Attributes:
        runs: Number of runs that train jointly.
        together_s: Seconds of a joint step.
        alone_s: Seconds of a single run's step.
        together_bytes: Memory of the joint step in bytes, as the compiler estimates it.
        alone_bytes: Memory of a single run's step in bytes.
        tokens: Token positions in a single run's step.
    """

    runs: int
    together_s: float
    alone_s: float
    together_bytes: int
    alone_bytes: int
    tokens: int

    @property
    def pays(self) -> bool:
        """True if joint training is faster than one run after the other."""
        return self.together_s < self.runs * self.alone_s

    def __str__(self) -> str:
        speed = self.runs * self.tokens / self.together_s
        alone = self.tokens / self.alone_s
        return (
            f'{self.runs} runs together: {speed:,.0f} tokens/s and '
            f'{self.together_bytes / 1e9:.2f} GB; one alone: {alone:,.0f} tokens/s and '
            f'{self.alone_bytes / 1e9:.2f} GB. Together they take '
            f'{self.together_s / (self.runs * self.alone_s):.2f} of the time of one after another, '
            f'and {self.together_bytes / (self.runs * self.alone_bytes):.2f} of the memory of '
            f'{self.runs} processes.'
        )


def compare(
    setups: Sequence[Setup], states: list[TrainState]
) -> tuple[Comparison, jax.stages.Compiled]:
    """Measure the joint step of runs, and the single step of the run with the largest rank.

    Args:
        setups: Parts of the runs.
        states: Training state of each run. The list is emptied, to free their memory.

    Returns:
        The measurements, and the compiled joint step.
    """
    setup, state = max(
        zip(setups, states, strict=True), key=lambda each: each[0].run.adapter.structure.rank
    )
    stacked, numbers = stack(states), stack([each.hyperparameters for each in setups])
    states.clear()
    run, rows = with_largest_ranks([each.run for each in setups]), next(setup.train_iterator())
    many_rows = {name: np.stack([array] * len(setups)) for name, array in rows.items()}
    _, alone_s, alone_bytes = _measured(setup, setup.run, state, setup.hyperparameters, rows)
    step, together_s, together_bytes = _measured(setup, run, stacked, numbers, many_rows)
    sizes = (together_bytes, alone_bytes, rows['inputs'].size)
    return Comparison(len(setups), together_s, alone_s, *sizes), step


def _measured(
    setup: Setup, run: RunConfig, state: TrainState, numbers: Hyperparameters, rows: Batch
) -> tuple[jax.stages.Compiled, float, int]:
    """Return a compiled step, its shortest time in seconds, and its memory in bytes.

    The shortest time is used because other programs can only make a step slower.
    """
    params = setup.base.params
    sizes = (setup.steps, len(setup.splits))
    step, times = lower_train_step(run, *sizes, state, params, numbers).compile(), []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        state, metrics = step(state, params, rows, numbers)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return step, min(times[1:]), compiled_memory_bytes(step)
