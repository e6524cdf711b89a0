"""Confidence intervals and significance tests of scores and of differences between models.

The intervals describe the uncertainty that comes from the sample of questions; the trained models
are fixed. Only `seed_interval` and `hierarchical_bootstrap` describe the variation between seeds.
Differences are paired, because both models answer the same questions. They are therefore far more
certain than two separate intervals suggest.

Dimension letters: S runs that differ in their seed, Q questions of a task.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Maximum number of question indices that are drawn at once, so that memory does not grow with the
# number of bootstrap resamples. Arrays of 0.5 MB stay in a core's cache, which saves a third of the
# time of arrays of 8 MB.
_CHUNK_ITEMS = 2**16


class Interval(NamedTuple):
    """A confidence interval with its bounds.

    Attributes:
        low: Lower bound.
        high: Upper bound.
    """

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The difference between two sets of scores or losses.

    Attributes:
        mean: Difference of the means.
        interval: Confidence interval of the difference.
        p: Two-sided p-value: probability of a difference at least as large as `mean`, in either
            direction, if the true difference were 0.
    """

    mean: float
    interval: Interval
    p: float

    @property
    def is_significant(self) -> bool:
        """True if the interval excludes 0, so that the difference is significant."""
        return not self.interval.low <= 0.0 <= self.interval.high


def wilson_interval(num_correct: float, count: int, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of an accuracy, the share of right answers (Wilson 1927).

    Args:
        num_correct: Number of right answers; as a mean over runs it may be a fraction.
        count: Number of questions.
        level: Confidence level: share of such intervals that contain the true accuracy.

    Raises:
        ValueError: `num_correct` is not between 0 and `count`, `count` is not positive, or `level`
            is not between 0 and 1.
    """
    _check_level(level)
    if not 0 <= num_correct <= count or count < 1:
        raise ValueError(
            f'{num_correct} right answers of {count} questions are impossible: count must be at '
            'least 1, and num_correct must be between 0 and count.'
        )
    share, z = num_correct / count, statistics.NormalDist().inv_cdf(0.5 + level / 2)
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean score (Efron 1979).

    It is meant for scores other than 0 and 1. For accuracies `wilson_interval` is better, above all
    near 0 and 1. With fewer than a few dozen scores the interval is too narrow.

    Args:
        values: (Q,) or (S, Q) scores; those of several runs are averaged by question first.
        level: Confidence level: share of such intervals that contain the true mean.
        num_resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap resamples.

    Raises:
        ValueError: There are no values, one is not finite, or `level` is not between 0 and 1.
    """
    _check_level(level)
    rng = np.random.default_rng(seed)
    return _percentile_interval(
        _resampled_means(_question_means(values), num_resamples, rng), level
    )


def score_interval(scores: ArrayLike) -> Interval:
    """Return the 95% confidence interval of a mean score.

    It is Wilson's interval if all scores are 0 or 1, and a bootstrap interval otherwise.

    Args:
        scores: (Q,) or (S, Q) scores; those of several runs are averaged by question first.

    Raises:
        ValueError: There are no scores, or one is not finite.
    """
    if np.isin(scores, (0.0, 1.0)).all():
        mean_Q = _question_means(scores)
        return wilson_interval(float(mean_Q.sum()), len(mean_Q))
    return bootstrap_interval(scores)


def average_interval(scores: Mapping[str, ArrayLike], level: float = 0.95) -> Interval:
    """Return the confidence interval of the average score: the mean of the tasks' mean scores.

    The bootstrap is stratified: the questions of each task are resampled separately, and all tasks
    have the same weight. If the answers to each task are all wrong or all right, resampling shows
    no uncertainty. The Wilson intervals of the tasks are combined instead, with the method of Zou
    and Donner (2008) for sums.

    Args:
        scores: (Q,) scores of one run, or (S, Q) scores of several runs, by task.
        level: Confidence level: share of such intervals that contain the true mean.

    Raises:
        ValueError: There are no tasks or scores, one is not finite, or `level` is not between 0
            and 1.
    """
    means_by_task = {task: _question_means(values) for task, values in scores.items()}
    if scores and all({*means_Q} in ({0.0}, {1.0}) for means_Q in means_by_task.values()):
        counts = [(float(means_Q.sum()), len(means_Q)) for means_Q in means_by_task.values()]
        return _average_wilson_interval(counts, level)
    # The mean equals its difference from scores of zero.
    zeros = {task: np.zeros_like(means_Q) for task, means_Q in means_by_task.items()}
    return paired_bootstrap(scores, zeros, level).interval


def _average_wilson_interval(counts: Sequence[tuple[float, int]], level: float) -> Interval:
    """Return the interval of the mean of several accuracies, from their Wilson intervals.

    Args:
        counts: Number of right answers and number of questions of each task.
        level: Confidence level.
    """
    shares = [num_correct / count for num_correct, count in counts]
    by_task = [wilson_interval(num_correct, count, level) for num_correct, count in counts]
    mean = sum(shares) / len(shares)
    pairs = [*zip(shares, by_task, strict=True)]
    below = math.hypot(*(share - interval.low for share, interval in pairs)) / len(pairs)
    above = math.hypot(*(interval.high - share for share, interval in pairs)) / len(pairs)
    return Interval(mean - below, mean + above)


def student_half_width(deviation: float, count: int, level: float = 0.95) -> float:
    """Return the half-width of Student's t interval of a mean.

    Args:
        deviation: Standard deviation of the values, estimated from a sample.
        count: Number of values, at least 2.
        level: Confidence level: share of such intervals that contain the true mean.
    """
    # Imported here because it takes a tenth of the start of commands, most of which do not need it.
    from scipy import special

    return float(special.stdtrit(count - 1, 0.5 + level / 2) * deviation / math.sqrt(count))


def seed_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """Return Student's t interval of the mean over all possible seeds.

    The source of uncertainty is the sample of seeds, which determine the data, initialization and
    dropout.

    Args:
        values: (S,) metric of each seed's run.
        level: Confidence level: share of such intervals that contain the true mean.

    Returns:
        The interval; None for a single seed, from which the variance cannot be estimated.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    _check_level(level)
    values_S = np.asarray(values, np.float64)
    count = len(values_S)
    if count < 2:
        return None
    half = student_half_width(values_S.std(ddof=1), count, level)
    return Interval(float(values_S.mean() - half), float(values_S.mean() + half))


def paired_bootstrap(
    scores: Mapping[str, ArrayLike],
    baseline: Mapping[str, ArrayLike],
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Return the average score minus the average baseline score, with its confidence interval.

    An average is the mean of the tasks' mean scores, so that all tasks have the same weight. The
    paired bootstrap (Koehn 2004) is stratified: the questions of each task are resampled
    separately. Each resample has the same questions for the scores and the baseline. The scores of
    several runs are averaged by question first. The interval is therefore about these runs, and
    does not include the variation between seeds. For example:

        difference = paired_bootstrap({'gsm8k': [1, 0, 1, 1]}, {'gsm8k': [0, 0, 1, 0]})

    Args:
        scores: (Q,) scores of one run, or (S, Q) scores of several runs, by task.
        baseline: Scores to subtract, in the same form: the same tasks, with the same questions in
            the same order. The number of runs S may differ.
        level: Confidence level: share of such intervals that contain the true difference.
        num_resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap resamples.

    Returns:
        The difference of the averages, its percentile interval, and its p-value. The p-value is
        twice the smaller of two shares of the resamples: the share with a difference of at most 0,
        and the share with a difference of at least 0. Apart from rounding, it is
        below 1 - `level` if the interval excludes 0.

    Raises:
        ValueError: The tasks or their numbers of questions differ, there are no tasks, a score is
            not finite, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if not scores or scores.keys() != baseline.keys():
        raise ValueError(
            'Scores and baseline must have the same tasks, at least one, not '
            f'{sorted(scores)} and {sorted(baseline)}.'
        )
    rng = np.random.default_rng(seed)
    gains = [_paired_differences(task, scores[task], baseline[task]) for task in sorted(scores)]
    mean = float(np.mean([gain.mean() for gain in gains]))
    return _difference(mean, _resampled_averages(gains, num_resamples, rng), level)


def hierarchical_bootstrap(
    gains: Sequence[Mapping[str, ArrayLike]],
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Return the average gain over seeds and tasks, with an interval for both kinds of chance.

    Each resample draws seeds with replacement, and for each drawn seed the questions of each task
    (Davison and Hinkley 1997, section 3.8). The interval therefore includes the variation between
    seeds. With fewer than about ten seeds it is too narrow. For example:

        hierarchical_bootstrap([{'gsm8k': [1, 0, 1]}, {'gsm8k': [0, 0, 1]}])  # Two seeds.

    Args:
        gains: For each seed, by task: (Q,) differences of two runs with that seed, one for each
            question. All seeds have the same tasks, which have the same weight.
        level: Confidence level: share of such intervals that contain the true difference.
        num_resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap resamples.

    Returns:
        The average, its percentile interval, and its p-value as in `paired_bootstrap`.

    Raises:
        ValueError: There are no seeds or tasks, the seeds have different tasks, a gain is not
            finite, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if not gains or not gains[0] or any(each.keys() != gains[0].keys() for each in gains):
        raise ValueError('All seeds must have the same tasks, and there must be at least one.')
    by_seed = [[_question_means(each[task]) for task in sorted(each)] for each in gains]
    rng = np.random.default_rng(seed)
    drawn_RS = rng.integers(len(gains), size=(num_resamples, len(gains)))
    averages_RS = np.empty(drawn_RS.shape)
    for index, of_tasks in enumerate(by_seed):
        is_drawn_RS = drawn_RS == index
        averages_RS[is_drawn_RS] = _resampled_averages(of_tasks, int(is_drawn_RS.sum()), rng)
    mean = float(np.mean([[gain.mean() for gain in of_tasks] for of_tasks in by_seed]))
    return _difference(mean, averages_RS.mean(axis=1), level)


def _difference(mean: float, resampled_means: np.ndarray, level: float) -> PairedDifference:
    # Round, because sums of floats that should cancel out may not be exactly 0.
    resampled_means = resampled_means.round(12)
    tail_count = min(int((resampled_means <= 0).sum()), int((resampled_means >= 0).sum()))
    return PairedDifference(
        mean=mean,
        interval=_percentile_interval(resampled_means, level),
        # Count the data as one more resample, so that the p-value is never 0.
        p=min(1.0, 2 * (tail_count + 1) / (len(resampled_means) + 1)),
    )


def _resampled_averages(
    gains: Sequence[np.ndarray], num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean over tasks of the mean of each bootstrap resample, (num_resamples,)."""
    return np.mean([_resampled_means(gain, num_resamples, rng) for gain in gains], axis=0)


def _paired_differences(task: str, scores: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    scores_Q, baseline_Q = _question_means(scores), _question_means(baseline)
    if scores_Q.shape != baseline_Q.shape:
        raise ValueError(
            f'Task {task!r} has {scores_Q.size} scored questions, but its baseline has '
            f'{baseline_Q.size}.'
        )
    return scores_Q - baseline_Q


def _question_means(values: ArrayLike) -> np.ndarray:
    """Return the mean over runs of each question's score, (Q,) float64.

    Raises:
        ValueError: The array is empty, has more than two dimensions, or has a value that is not
            finite.
    """
    values_SQ = np.atleast_2d(np.asarray(values, np.float64))
    if values_SQ.ndim > 2 or not values_SQ.size:
        raise ValueError(
            'Scores must have the shape (questions,) or (runs, questions) and must not be empty; '
            f'their shape is {values_SQ.shape}.'
        )
    if not np.isfinite(values_SQ).all():
        raise ValueError('Scores must be finite numbers.')
    return values_SQ.mean(axis=0)


def _resampled_means(
    values_Q: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean of each bootstrap resample of Q values, (num_resamples,)."""
    size = len(values_Q)
    rows = max(1, _CHUNK_ITEMS // size)
    counts = (min(rows, num_resamples - start) for start in range(0, num_resamples, rows))
    return np.concatenate(
        [values_Q[rng.integers(size, size=(count, size))].mean(axis=1) for count in counts]
        or [np.empty(0)]
    )


def _percentile_interval(resampled_means: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(resampled_means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f'The confidence level must be between 0 and 1, not {level}.')
