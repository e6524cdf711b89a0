"""Intervals compared with scipy, with values computed by hand, and with their nominal coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from malora_jax.statistics import (
    average_interval,
    bootstrap_interval,
    hierarchical_bootstrap,
    paired_bootstrap,
    wilson_interval,
)

# One proportion.


@pytest.mark.parametrize('right, count', [(0, 1), (0, 164), (1, 3), (54, 164), (1319, 1319)])
@pytest.mark.parametrize('level', [0.5, 0.95, 0.99])
def test_wilson_is_scipy_s(right, count, level):
    expected = stats.binomtest(right, count).proportion_ci(level, method='wilson')
    assert wilson_interval(right, count, level) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_a_mean_over_runs():
    low, high = wilson_interval(53.5, 164)
    assert wilson_interval(53, 164).low < low < wilson_interval(54, 164).low
    assert wilson_interval(53, 164).high < high < wilson_interval(54, 164).high


def test_wilson_stays_between_0_and_1():
    for count in range(1, 500):
        assert 0.0 <= wilson_interval(0, count).low < 1e-15
        assert 1.0 - 1e-15 < wilson_interval(count, count).high <= 1.0


@pytest.mark.parametrize(
    'right, count, level, message',
    [
        (2, 1, 0.9, '2 right answers of 1 questions are impossible: count must'),
        (-1, 1, 0.9, '-1 right answers'),
        (0, 0, 0.9, '0 right answers of 0 questions'),
        (1, 1, 1.0, 'The confidence level must be between 0 and 1, not 1.0'),
    ],
)
def test_what_wilson_refuses(right, count, level, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(right, count, level)


# One mean.


def test_all_resamples_of_three():
    """The interval's ends are quantiles of the 27 equally likely resamples."""
    values = [0.1, 0.4, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]
    # These levels lie between steps of the distribution, so sampling noise cannot move the
    # quantiles.
    expected = np.quantile(means, [0.1, 0.9], method='inverted_cdf')
    assert bootstrap_interval(values, level=0.8) == pytest.approx(tuple(expected))


def test_bootstrap_is_near_the_normal_interval():
    values = np.random.default_rng(0).beta(2, 1, size=600)
    error = values.std() / 600**0.5
    expected = values.mean() + np.array([-1.96, 1.96]) * error
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), abs=0.05 * error)


def test_bootstrap_in_chunks(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values, num_resamples=1_000)
    monkeypatch.setattr('malora_jax.statistics._CHUNK_ITEMS', 7 * 50 + 1)
    assert bootstrap_interval(values, num_resamples=1_000) == whole
    monkeypatch.setattr('malora_jax.statistics._CHUNK_ITEMS', 1)
    assert bootstrap_interval(values, num_resamples=1_000) == whole


def test_the_seed_decides():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_runs_are_averaged_by_question():
    runs_SQ = np.random.default_rng(0).random((3, 40))
    assert bootstrap_interval(runs_SQ) == bootstrap_interval(runs_SQ.mean(axis=0))


def test_how_often_the_interval_holds_the_mean():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.beta(2, 1, 80), 0.9, num_resamples=400) for _ in range(500)]
    held = np.mean([low <= 2 / 3 <= high for low, high in intervals])
    assert 0.87 < held < 0.93


@pytest.mark.parametrize('values', [[], np.zeros((2, 0)), np.zeros((2, 2, 2))])
def test_values_of_another_shape(values):
    with pytest.raises(ValueError, match=r'have the shape \(questions,\) or \(runs, questions\)'):
        bootstrap_interval(values)


# Differences between two runs.


def test_every_task_weighs_the_same():
    difference = paired_bootstrap(
        {'small': [1, 1], 'large': [0, 1, 0, 1, 0, 0, 0, 0]},
        {'large': [0, 0, 0, 0, 0, 0, 1, 1], 'small': [1, 0]},
    )
    assert difference.mean == (0.5 + 0.0) / 2


def test_the_order_of_tasks_does_not_matter():
    rng = np.random.default_rng(0)
    scores, baseline = ({name: rng.random(30) for name in 'abc'} for _ in range(2))
    turned = {name: scores[name] for name in 'cab'}
    assert paired_bootstrap(turned, baseline) == paired_bootstrap(scores, baseline)


def test_all_resamples_of_two_tasks():
    """Gains of 1, 0 and of 1, 1, -1 have 4 x 27 equally likely resamples."""
    difference = paired_bootstrap({'a': [1, 1], 'b': [1, 1, 0]}, {'a': [0, 1], 'b': [0, 0, 1]}, 0.8)
    means = [
        (np.mean(first) + np.mean(second)) / 2
        for first in itertools.product([1, 0], repeat=2)
        for second in itertools.product([1, 1, -1], repeat=3)
    ]
    expected = np.quantile(means, [0.1, 0.9], method='inverted_cdf')
    assert difference.interval == pytest.approx(tuple(expected))
    share = np.mean(np.array(means) <= 1e-9)
    assert difference.p == pytest.approx(2 * share, abs=0.02)


def test_pairs_tell_more_than_two_intervals():
    rng = np.random.default_rng(0)
    hard_Q = rng.random(500)
    baseline = (hard_Q < 0.60).astype(float)
    scores = (hard_Q < 0.63).astype(float)
    paired = paired_bootstrap({'task': scores}, {'task': baseline})
    assert paired.is_significant
    assert paired.p < 0.01
    shuffled = paired_bootstrap({'task': scores}, {'task': rng.permutation(baseline)})
    assert shuffled.mean == pytest.approx(paired.mean)
    assert not shuffled.is_significant


def test_exchanging_the_two():
    rng = np.random.default_rng(0)
    first, second = {'t': rng.random(60)}, {'t': rng.random(60)}
    one, other = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert other.mean == pytest.approx(-one.mean)
    assert other.interval == pytest.approx((-one.interval.high, -one.interval.low))
    assert other.p == one.p


def test_equal_scores():
    scores = {'t': [0.3, 0.7, 0.1]}
    difference = paired_bootstrap(scores, scores)
    assert (difference.mean, difference.interval, difference.p) == (0.0, (0.0, 0.0), 1.0)
    assert not difference.is_significant


def test_gains_that_cancel_out_are_no_difference():
    """In floating point, 0.1 + 0.2 - 0.3 is not 0."""
    scores = {name: [gain] * 4 for name, gain in (('a', 0.1), ('b', 0.2), ('c', -0.3))}
    difference = paired_bootstrap(scores, {name: [0.0] * 4 for name in scores})
    assert not difference.is_significant
    assert difference.p == 1.0


def test_a_difference_of_every_question():
    difference = paired_bootstrap({'t': [1, 1, 1]}, {'t': [0, 0, 0]}, num_resamples=999)
    assert difference.interval == (1.0, 1.0)
    assert difference.p == 2 / 1000


def test_runs_of_each_side_are_averaged():
    rng = np.random.default_rng(0)
    first_SQ, second_SQ = rng.random((3, 40)), rng.random((2, 40))
    assert paired_bootstrap({'t': first_SQ}, {'t': second_SQ}) == paired_bootstrap(
        {'t': first_SQ.mean(axis=0)}, {'t': second_SQ.mean(axis=0)}
    )


def test_how_often_it_sees_a_difference_that_is_not_there():
    rng = np.random.default_rng(0)
    found = [
        paired_bootstrap(
            {'a': rng.random(100) < 0.7, 'b': rng.random(50) < 0.2},
            {'a': rng.random(100) < 0.7, 'b': rng.random(50) < 0.2},
            num_resamples=400,
        )
        for _ in range(500)
    ]
    assert 0.03 < np.mean([difference.is_significant for difference in found]) < 0.07
    assert 0.03 < np.mean([difference.p < 0.05 for difference in found]) < 0.07


@pytest.mark.parametrize(
    'scores, baseline, message',
    [
        ({'a': [1]}, {'b': [1]}, r"the same tasks, at least one, not \['a'\] and \['b'\]"),
        ({}, {}, 'the same tasks, at least one'),
        ({'a': [1, np.nan]}, {'a': [1, 0]}, 'Scores must be finite numbers'),
        ({'a': [1, 0]}, {'a': [1]}, "Task 'a' has 2 scored questions, but its baseline has 1"),
    ],
)
def test_what_cannot_be_compared(scores, baseline, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(scores, baseline)


def test_the_interval_of_an_average_over_tasks():
    rng = np.random.default_rng(0)
    scores = {'a': rng.integers(2, size=400) * 1.0, 'b': rng.random(900)}
    low, high = average_interval(scores)
    mean = (scores['a'].mean() + scores['b'].mean()) / 2
    error = np.sqrt(scores['a'].var() / 400 + scores['b'].var() / 900) / 2
    assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=2e-3)


def test_the_interval_of_an_average_of_tasks_with_equal_answers():
    none, every = np.zeros(64), np.ones(64)
    assert average_interval({'a': none}) == pytest.approx(wilson_interval(0, 64), abs=1e-12)
    assert average_interval({'a': every}) == pytest.approx(wilson_interval(64, 64), abs=1e-12)
    low, high = average_interval({'a': none, 'b': none, 'c': none})
    assert low == 0
    # Three tasks are more certain than one, and less than one with all questions.
    assert wilson_interval(0, 192).high < high < wilson_interval(0, 64).high
    low, high = average_interval({'a': none, 'b': every})
    assert (low, high) == pytest.approx((0.5 - (high - 0.5), high)) and low < 0.48


# Several seeds.


def test_one_seed_is_the_paired_bootstrap():
    gains = {'a': np.linspace(-1, 2, 40), 'b': np.linspace(0, 1, 30) ** 2}
    found = hierarchical_bootstrap([gains])
    zeros = {task: np.zeros_like(values) for task, values in gains.items()}
    paired = paired_bootstrap(gains, zeros)
    assert found.mean == paired.mean
    assert found.interval == pytest.approx(paired.interval, abs=0.02)


def test_all_resamples_of_two_seeds_without_questions():
    """If the questions of a seed are equal, only the seeds vary: 1, 2 and 3 have 1/4, 1/2, 1/4."""
    found = hierarchical_bootstrap([{'a': [1.0] * 5}, {'a': [3.0] * 5}], level=0.6)
    assert found.mean == 2 and found.interval == (1, 3)
    narrower = hierarchical_bootstrap([{'a': [1.0] * 5}, {'a': [3.0] * 5}], level=0.4)
    assert narrower.interval == (2, 2)


def test_how_often_the_interval_holds_the_difference_of_many_seeds():
    """Two variances, of seeds and of questions; an interval over questions alone is too narrow."""
    rng = np.random.default_rng(0)
    inside = {'hierarchical': 0, 'questions': 0}
    for _ in range(200):
        of_seeds = rng.normal(0, 0.3, size=12)
        gains = [{'a': rng.normal(mean, 1, 30), 'b': rng.normal(mean, 1, 30)} for mean in of_seeds]
        whole = hierarchical_bootstrap(gains, num_resamples=400)
        scores = {task: [each[task] for each in gains] for task in 'ab'}
        zeros = {task: np.zeros(30) for task in 'ab'}
        alone = paired_bootstrap(scores, zeros, num_resamples=400)
        for name, found in (('hierarchical', whole), ('questions', alone)):
            inside[name] += found.interval.low <= 0 <= found.interval.high
    assert 180 <= inside['hierarchical'] <= 199
    assert inside['questions'] <= 140


@pytest.mark.parametrize('gains', [[], [{}], [{'a': [1.0]}, {'b': [1.0]}]])
def test_seeds_with_different_tasks_are_refused(gains):
    with pytest.raises(ValueError, match='All seeds must have the same tasks'):
        hierarchical_bootstrap(gains)
