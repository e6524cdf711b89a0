"""Interleaved timing of several subjects, for machines that other processes may use too.

In each round, every subject runs one step, and the order rotates from round to round. A temporary
slowdown of the machine therefore affects all subjects alike. Ratios are computed within a round.
"""

from collections.abc import Sequence

import numpy as np
import tqdm

from malora_jax import shutdown
from malora_jax.benchmark.subjects import PARTS, Subject, seconds
from malora_jax.training.step import Batch

# A step time is steady if its interquartile range is below this fraction of its median.
STEADY = 0.03
# Maximum number of rounds, as a multiple of the requested number.
_PATIENCE = 2
# Rounds from one timing of a step's parts to the next; every round times the whole step.
_PARTS_EVERY = 4

# Seconds of each round, by subject and part; nan in rounds in which the part was not timed.
Times = dict[str, dict[str, np.ndarray]]


def measure(subjects: Sequence[Subject], batches: Sequence[Batch], rounds: int) -> Times:
    """Time the step of each subject in every round, and the parts of the step in some rounds.

    Ctrl-C ends the measurement; the complete rounds count.

    Args:
        subjects: Subjects to be timed. Each part is first run once as a warm-up.
        batches: Batches of the same shape. All subjects use the same batch in a round.
        rounds: Minimum number of rounds. Up to twice as many are run until all steps are steady.

    Returns:
        Seconds of each round, by subject and part.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed before the first round was complete.
    """
    for subject in subjects:
        for part in PARTS:
            subject.run_part(part, batches[0])
    found: list[dict[tuple[str, str], float]] = []
    bar = tqdm.tqdm(total=rounds, desc='measure', unit='round', dynamic_ncols=True)
    with shutdown.interruptible(), bar:
        for number in range(_PATIENCE * rounds):
            if number >= rounds and all(
                is_steady(np.array([times[subject.name, 'step'] for times in found]))
                for subject in subjects
            ):
                break
            parts = PARTS if number % _PARTS_EVERY == 0 else PARTS[-1:]
            batch, first = batches[number % len(batches)], number % len(subjects)
            turns = (*subjects[first:], *subjects[:first])
            try:
                found.append(
                    {
                        (s.name, part): seconds(s.run_part, part, batch)
                        for s in turns
                        for part in parts
                    }
                )
            except KeyboardInterrupt:
                if not found:
                    raise
                bar.write(f'Interrupted: {len(found)} whole rounds count.')
                break
            bar.total = max(rounds, number + 1)
            bar.update()
    return {
        subject.name: {
            part: np.array([times.get((subject.name, part), np.nan) for times in found])
            for part in PARTS
        }
        for subject in subjects
    }


def is_steady(seconds: np.ndarray) -> bool:
    """Return whether the interquartile range is below `STEADY` times the median.

    Args:
        seconds: (rounds,), the times of one subject's step.
    """
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return bool(high - low < STEADY * middle)
