"""Timing several subjects against each other, on a machine that others may use too.

Subjects take turns, a step each, in an order that moves on from round to round: what slows the
machine for a while slows them all. Ratios are those of one round.
"""

from collections.abc import Sequence

import numpy as np
import tqdm

from malora_jax import shutdown
from malora_jax.benchmark.subjects import PARTS, Subject, seconds
from malora_jax.training.step import Batch

# A median is steady where the middle half of the times is within this share of it.
STEADY = 0.03
# Rounds until all are steady, as a multiple of those asked for.
_PATIENCE = 2
# Parts of a step are timed in one round of so many.
_PARTS_EVERY = 4

# By subject and part, seconds of each round; nan where a round has none.
Times = dict[str, dict[str, np.ndarray]]


def measure(subjects: Sequence[Subject], batches: Sequence[Batch], rounds: int) -> Times:
    """Times each subject's step in every round, and the parts of it in some.

    Args:
        subjects: what takes turns; their programs are run once before, which is not timed.
        batches: of the same shape; a round uses one, all subjects the same.
        rounds: at least so many; up to twice as many, until all steps are steady. Ctrl-C ends it
            after the last whole round.
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
    """Whether the quartile range is within `STEADY` of the median."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return bool(high - low < STEADY * middle)
