"""Interleaved timing of several methods, for machines that other processes may use too.

In each round, every method runs one step, and the order rotates from round to round. A temporary
slowdown of the machine therefore affects all methods alike. Ratios are computed within a round.
"""

from collections.abc import Sequence

import numpy as np

from malora_jax import shutdown
from malora_jax.benchmark.timed_steps import PARTS, TimedStep, time_part
from malora_jax.progress import ProgressBar
from malora_jax.training.step import Batch

# A step time is steady if its interquartile range is below this fraction of its median.
MAX_RELATIVE_IQR = 0.03
# Maximum number of rounds, as a multiple of the requested number.
_MAX_ROUNDS_FACTOR = 2
# Rounds from one timing of a step's parts to the next; every round times the whole step.
_PARTS_EVERY = 4

# Seconds of each round, (rounds,), by method and part; nan where the part was not timed.
Times = dict[str, dict[str, np.ndarray]]


def measure(timed_steps: Sequence[TimedStep], batches: Sequence[Batch], rounds: int) -> Times:
    """Time the step of each method in every round, and the parts of the step in some rounds.

    Ctrl-C ends the measurement; the result then has only the complete rounds.

    Args:
        timed_steps: Training steps to time, one per method. Each part is first run once as a
            warm-up.
        batches: Batches of the same shape. All methods use the same batch in a round.
        rounds: Minimum number of rounds. Up to twice as many are run until all steps are steady.

    Returns:
        Seconds of each round, by method and part; nan where the part was not timed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed before the first round was complete.
    """
    for timed_step in timed_steps:
        for part in PARTS:
            timed_step.run_part(part, batches[0])
    round_times: list[dict[tuple[str, str], float]] = []
    with shutdown.interruptible(), ProgressBar('measure', rounds, 'round', delay=1.0) as bar:
        bar.update(0)
        for number in range(_MAX_ROUNDS_FACTOR * rounds):
            if number >= rounds and all(
                is_steady(np.array([times[timed_step.name, 'step'] for times in round_times]))
                for timed_step in timed_steps
            ):
                break
            parts = PARTS if number % _PARTS_EVERY == 0 else PARTS[-1:]
            batch, offset = batches[number % len(batches)], number % len(timed_steps)
            order = (*timed_steps[offset:], *timed_steps[:offset])
            try:
                round_times.append(
                    {
                        (s.name, part): time_part(s.run_part, part, batch)
                        for s in order
                        for part in parts
                    }
                )
            except KeyboardInterrupt:
                if not round_times:
                    raise
                bar.write(f'Interrupted; the result uses the complete rounds: {len(round_times)}.')
                break
            bar.total = max(rounds, number + 1)
            bar.advance(1)
    return {
        timed_step.name: {
            part: np.array([times.get((timed_step.name, part), np.nan) for times in round_times])
            for part in PARTS
        }
        for timed_step in timed_steps
    }


def is_steady(seconds: np.ndarray) -> bool:
    """Return whether the interquartile range is below `MAX_RELATIVE_IQR` times the median.

    Args:
        seconds: (rounds,), times of one method's step.
    """
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return bool(high - low < MAX_RELATIVE_IQR * middle)
