"""How far a score can be trusted: intervals for one, and for the difference of two.

What is uncertain here is which questions were asked: everything is about other questions of the
same kind, put to the same trained models. Differences are paired, as both models answer the same
questions, which makes them far more certain than two separate intervals suggest.

Dimensions: S runs that differ in their seed, Q questions of a task.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

# Of a chunk of resamples, so that memory does not grow with their number: 8 MB of int64.
_CHUNK_ITEMS = 2**20


class Interval(NamedTuple):
    """An interval of confidence."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher one set of scores, or of losses, is than another.

    Attributes:
        mean: the difference of the means.
        interval: its interval of confidence.
        p: two-sided probability of a difference this large if there were none.
    """

    mean: float
    interval: Interval
    p: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval.low <= 0.0 <= self.interval.high


def wilson_interval(right: float, count: int, level: float = 0.95) -> Interval:
    """Interval of confidence for a share of right answers (Wilson 1927).

    Args:
        right: how many are right; a mean over runs need not be whole.
        count: how many questions there are.
        level: how often such intervals hold the true share.

    Raises:
        ValueError: `right` is not between 0 and `count`, `count` not positive, or `level` not
            between 0 and 1.
    """
    _check_level(level)
    if not 0 <= right <= count or count < 1:
        raise ValueError(f'{right} right answers of {count} questions cannot be.')
    share, z = right / count, statistics.NormalDist().inv_cdf(0.5 + level / 2)
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for a mean of scores that are not 0 or 1 (Efron 1979).

    For shares of right answers, `wilson_interval` is better, above all near 0 and 1. With less than
    a few dozen scores the interval is too narrow.

    Args:
        values: (Q,) or (S, Q) scores; those of several runs are averaged by question first.
        level: how often such intervals hold the true mean.
        samples: how many times the questions are drawn anew.
        seed: of the draws.

    Raises:
        ValueError: there are no values, one is not finite, or `level` is not between 0 and 1.
    """
    _check_level(level)
    rng = np.random.default_rng(seed)
    return _percentiles(_resampled_means(_by_question(values), samples, rng), level)


def score_interval(scores: ArrayLike) -> Interval:
    """95% interval of confidence for a mean score: Wilson's if all are 0 or 1, else by bootstrap.

    Args:
        scores: (Q,) or (S, Q).
    """
    if np.isin(scores, (0.0, 1.0)).all():
        mean_Q = _by_question(scores)
        return wilson_interval(float(mean_Q.sum()), len(mean_Q))
    return bootstrap_interval(scores)


def average_interval(scores: Mapping[str, ArrayLike], level: float = 0.95) -> Interval:
    """Interval of confidence for the mean over tasks of their mean scores.

    Stratified bootstrap: the questions of each task are drawn anew, and every task weighs the same.

    Args:
        scores: of each task, (Q,) or (S, Q).
        level: how often such intervals hold the true mean.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    # That of the difference to no right answer.
    nothing = {task: np.zeros_like(_by_question(values)) for task, values in scores.items()}
    return paired_bootstrap(scores, nothing, level).interval


def seed_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """Interval of confidence for the mean over all seeds, from some: Student's t.

    What is uncertain here is which seeds were drawn, and with them data, start and dropout.

    Args:
        values: (S,), a number of each seed's run.
        level: how often such intervals hold the true mean.

    Returns:
        None for a single seed, which says nothing of others.
    """
    _check_level(level)
    values_S = np.asarray(values, np.float64)
    count = len(values_S)
    if count < 2:
        return None
    half = stats.t.ppf(0.5 + level / 2, count - 1) * values_S.std(ddof=1) / math.sqrt(count)
    return Interval(float(values_S.mean() - half), float(values_S.mean() + half))


def paired_bootstrap(
    scores: Mapping[str, ArrayLike],
    baseline: Mapping[str, ArrayLike],
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How much better `scores` are than `baseline`, in the mean over tasks of their means.

    Paired bootstrap (Koehn 2004), stratified: the questions of each task are drawn anew, for both
    alike, and every task weighs the same. The scores of several runs are averaged by question
    first, so that the interval is about these runs: it does not tell how others would come out.

    Args:
        scores: of each task, (Q,) or (S, Q).
        baseline: of the same tasks and, in the same order, the same questions; the number of runs
            may differ.
        level: how often such intervals hold the true difference.
        samples: how many times the questions are drawn anew.
        seed: of the draws.

    Returns:
        The difference, its percentile interval, and twice the smaller share of draws on one side
        of 0, which is under 1 - `level` where the interval leaves out 0, but for rounding.

    Raises:
        ValueError: the two have other tasks or numbers of questions, there are none, a score is
            not finite, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if not scores or scores.keys() != baseline.keys():
        raise ValueError(f'Tasks differ: {sorted(scores)} and {sorted(baseline)}.')
    rng = np.random.default_rng(seed)
    gains = [_gain(task, scores[task], baseline[task]) for task in sorted(scores)]
    # Rounded, as sums of floats that cancel out would not be quite 0.
    drawn = np.mean([_resampled_means(gain, samples, rng) for gain in gains], axis=0).round(12)
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(
        mean=float(np.mean([gain.mean() for gain in gains])),
        interval=_percentiles(drawn, level),
        # The data themselves count as one more draw, so that it is never 0.
        p=min(1.0, 2 * (side + 1) / (samples + 1)),
    )


def _gain(task: str, scores: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    scores_Q, baseline_Q = _by_question(scores), _by_question(baseline)
    if scores_Q.shape != baseline_Q.shape:
        raise ValueError(
            f'Task {task!r} has {scores_Q.size} scores of questions but {baseline_Q.size} of the '
            'baseline.'
        )
    return scores_Q - baseline_Q


def _by_question(values: ArrayLike) -> np.ndarray:
    """(Q,): the mean over runs."""
    values_SQ = np.atleast_2d(np.asarray(values, np.float64))
    if values_SQ.ndim > 2 or not values_SQ.size:
        raise ValueError(f'Scores are (questions) or (runs, questions), not {values_SQ.shape}.')
    if not np.isfinite(values_SQ).all():
        raise ValueError('Scores are finite numbers.')
    return values_SQ.mean(axis=0)


def _resampled_means(values_Q: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(samples,): the means of as many values, drawn with replacement."""
    size = len(values_Q)
    rows = max(1, _CHUNK_ITEMS // size)
    counts = (min(rows, samples - start) for start in range(0, samples, rows))
    return np.concatenate(
        [values_Q[rng.integers(size, size=(count, size))].mean(axis=1) for count in counts]
    )


def _percentiles(drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f'A level of confidence is between 0 and 1, not {level}.')
