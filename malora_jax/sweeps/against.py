"""A step of several runs together, measured against steps of one alone: time and memory."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.sweeps.memory import step_bytes
from malora_jax.sweeps.padding import pad
from malora_jax.sweeps.step import Values, stack
from malora_jax.sweeps.step import lowered_step as lowered_together
from malora_jax.training.config import RunConfig
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.step import lowered_step

# Steps that are timed, after one that is not.
_STEPS = 3


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        runs: how many train together.
        together_s: seconds of a step of all.
        alone_s: of a step of one.
        together_bytes: memory of all, as the compiler counts it.
        alone_bytes: of one.
        tokens: positions of a step of one.
    """

    runs: int
    together_s: float
    alone_s: float
    together_bytes: int
    alone_bytes: int
    tokens: int

    @property
    def pays(self) -> bool:
        """Whether together is faster than one after the other."""
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
    setup: Setup, state: TrainState, run: RunConfig, whole: TrainState, values: Values
) -> tuple[Comparison, jax.stages.Compiled]:
    """Compiles both steps and times them on the same rows.

    Args:
        setup: of one of the runs, that of the largest ranks.
        state: one for it, which stays as it is.
        run: what they share, as `traced.common` has it.
        whole: the shapes of its state.
        values: what all differ in.

    Returns:
        What was measured, and the step of all.
    """
    runs, params = len(values['seed']), setup.base.params
    rows = next(setup.train_iterator())
    tasks = len(setup.splits)
    one = lowered_step(setup.run, setup.model, setup.steps, tasks, state, params).compile()
    alone_s = _seconds(lambda state: one(state, params, rows), _copy(state))
    states = stack([pad(state, whole)] * runs)
    several = {name: np.stack([array] * runs) for name, array in rows.items()}
    all_of_them = lowered_together(run, setup.steps, tasks, states, params, values).compile()
    together_s = _seconds(lambda states: all_of_them(states, params, several, values), states)
    found = Comparison(
        *(runs, together_s, alone_s, step_bytes(all_of_them), step_bytes(one)),
        tokens=rows['inputs'].size,
    )
    return found, all_of_them


def _seconds(step: Callable[[Any], Any], state: Any) -> float:
    """The least of several, as other programs can only make it longer."""
    times = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        state, metrics = step(state)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)
