"""Win rate of a model's answers against a baseline's, with its uncertainty."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.errors import UserError


class WinRate(NamedTuple):
    """Win rate of answers against the baseline's, with a confidence interval.

    Attributes:
        rate: Share of wins, with a tie as half a win.
        low, high: 95% interval of the rate by the percentile bootstrap over questions.
        wins, ties, losses: Number of questions with each outcome.
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def win_rate(scores: Sequence[float], *, seed: int = 0, num_resamples: int = 10_000) -> WinRate:
    """Return the win rate of scores, with its bootstrap interval.

    Args:
        scores: Score of each question: 1, 0.5 or 0.
        seed: Random seed of the bootstrap.
        num_resamples: Number of bootstrap resamples.

    Raises:
        UserError: There are no scores.
    """
    if not scores:
        raise UserError('No question has a verdict, so there is no win rate.')
    counts = collections.Counter(scores)
    numbers = [counts[1.0], counts[0.5], counts[0.0]]
    # Scores have three values, so a bootstrap resample is a multinomial draw of their counts.
    drawn = np.random.default_rng(seed).multinomial(
        len(scores), np.array(numbers) / len(scores), size=num_resamples
    )
    rates = drawn @ np.array([1.0, 0.5, 0.0]) / len(scores)
    low, high = np.quantile(rates, (0.025, 0.975))
    return WinRate(float(np.mean(scores)), float(low), float(high), *numbers)


def standard_error(scores: Sequence[float]) -> float:
    """Return the standard error of the mean of scores; NaN for a single score."""
    if len(scores) < 2:
        return float('nan')
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores)))
