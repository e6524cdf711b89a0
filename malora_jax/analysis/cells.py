"""Formatting of numbers as table cells and as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malora_jax.analysis.page import NO_VALUE
from malora_jax.statistics import Interval, PairedDifference


def score(mean_and_interval: tuple[float, Interval | None] | None) -> str:
    """Return a mean score in percent with its interval, such as '41.2 [38.0, 44.5]'."""
    if mean_and_interval is None:
        return NO_VALUE
    mean, interval = mean_and_interval
    inside = f' [{100 * interval.low:.1f}, {100 * interval.high:.1f}]' if interval else ''
    return f'{100 * mean:.1f}{inside}'


def loss(mean: float | None, interval: Interval | None = None) -> str:
    """Return a mean loss with its interval, such as '0.412 [0.398, 0.427]'."""
    if mean is None:
        return NO_VALUE
    inside = f' [{interval.low:.3f}, {interval.high:.3f}]' if interval else ''
    return f'{mean:.3f}{inside}'


def points(difference: PairedDifference) -> str:
    """Return a difference of scores in percentage points, such as '+1.2 [-0.4, +2.8]'."""
    return _signed(difference.mean, difference.interval, 100, 1)


def nats(difference: PairedDifference) -> str:
    """Return a difference of losses in nats per token, such as '+0.012 [-0.004, +0.028]'."""
    return signed_loss(difference.mean, difference.interval)


def signed_loss(mean: float, interval: Interval | None) -> str:
    """Return a mean of differences of losses with its interval, in the form of `nats`."""
    return _signed(mean, interval, 1, 3)


def score_difference(difference: PairedDifference | None) -> str:
    """Return a difference of scores as text, in percentage points, with its interval.

    A difference whose interval contains 0 is marked: '+1.2 [-0.4, +2.8], not significant'.
    """
    return NO_VALUE if difference is None else points(difference) + _verdict(difference)


def loss_difference(difference: PairedDifference | None) -> str:
    """Return a difference of losses as text, with its interval.

    A difference whose interval contains 0 is marked: '+0.012 [-0.004, +0.028], not significant'.
    """
    return NO_VALUE if difference is None else nats(difference) + _verdict(difference)


def to_json_value(value: Any) -> Any:
    """Return a nested value with each `PairedDifference` converted to a dict, ready for JSON."""
    if isinstance(value, PairedDifference):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: to_json_value(item) for key, item in value.items()}
    return value


def _signed(mean: float, interval: Interval | None, unit: float, digits: int) -> str:
    text, *bounds = (f'{unit * value:+.{digits}f}' for value in (mean, *(interval or ())))
    return f'{text} [{", ".join(bounds)}]' if bounds else text


def _verdict(difference: PairedDifference) -> str:
    return '' if difference.is_significant else ', not significant'
