"""A joint step of several runs compared with steps of a single run: time and memory."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from malora_jax.sweeps.padding import pad, stack
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.step import lowered_step

# Steps that are timed, after one that is not.
_STEPS = 3


class Comparison(NamedTuple):
    """Measured times and memory.

    Attributes:
        runs: Number of runs that train jointly.
        together_s: Seconds of a joint step.
        alone_s: Seconds of a step of a single run.
        together_bytes: Memory of the joint step, as the compiler counts it.
        alone_bytes: Memory of a single run's step.
        tokens: Positions in a step of a single run.
    """

    runs: int
    together_s: float
    alone_s: float
    together_bytes: int
    alone_bytes: int
    tokens: int

    @property
    def pays(self) -> bool:
        """Whether joint training is faster than one run after the other."""
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
    setup: Setup, state: TrainState, run: RunConfig, whole: TrainState, several: Hyperparameters
) -> tuple[Comparison, jax.stages.Compiled]:
    """Compile both steps and time them on the same rows.

    Args:
        setup: Parts of the run with the largest ranks.
        state: A state of that run; its memory is reused.
        run: Config of one of the runs, with the largest ranks of all.
        whole: Shapes of the state with these ranks.
        several: Stacked hyperparameters of all runs.

    Returns:
        The measurements, and the compiled joint step.
    """
    runs, params, sizes = len(several.seed), setup.base.params, (setup.steps, len(setup.splits))
    rows, one = next(setup.train_iterator()), setup.hyperparameters
    states = stack([pad(state, whole)] * runs)
    alone = lowered_step(setup.run, *sizes, state, params, one).compile()
    joint = lowered_step(run, *sizes, states, params, several).compile()
    alone_s = _seconds(alone, state, params, rows, one)
    many_rows = {name: np.stack([array] * runs) for name, array in rows.items()}
    together_s = _seconds(joint, states, params, many_rows, several)
    memory = (step_bytes(joint), step_bytes(alone))
    return Comparison(runs, together_s, alone_s, *memory, tokens=rows['inputs'].size), joint


def _seconds(step: jax.stages.Compiled, state: TrainState, *args: Any) -> float:
    """Return the shortest time of several steps, as other programs can only make it longer."""
    times = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        state, metrics = step(state, *args)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def step_bytes(compiled: Any) -> int:
    """Return the bytes that a step takes with base, states and rows, as the compiler counts."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
