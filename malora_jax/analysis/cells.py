"""Formatting of numbers as table cells and as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malora_jax.analysis.page import NONE
from malora_jax.statistics import Difference, Interval


def score(found: tuple[float, Interval | None] | None) -> str:
    """Return a mean score in percent with its interval, such as '41.2 [38.0, 44.5]'."""
    if found is None:
        return NONE
    mean, interval = found
    inside = f' [{100 * interval.low:.1f}, {100 * interval.high:.1f}]' if interval else ''
    return f'{100 * mean:.1f}{inside}'


def loss(mean: float | None, interval: Interval | None = None) -> str:
    """Return a mean loss with its interval, such as '0.412 [0.398, 0.427]'."""
    if mean is None:
        return NONE
    inside = f' [{interval.low:.3f}, {interval.high:.3f}]' if interval else ''
    return f'{mean:.3f}{inside}'


def score_difference(found: Difference | None) -> str:
    """Return a difference of scores in percentage points with its interval."""
    return _difference(found, 100, 1)


def loss_difference(found: Difference | None) -> str:
    """Return a difference of losses with its interval."""
    return _difference(found, 1, 3)


def plain(value: Any) -> Any:
    """Return a nested value with each `Difference` converted to a dict, ready for JSON."""
    if isinstance(value, Difference):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def _difference(found: Difference | None, unit: float, digits: int) -> str:
    if found is None:
        return NONE
    mean, low, high = (f'{unit * value:+.{digits}f}' for value in (found.mean, *found.interval))
    verdict = '' if found.distinguishable else ', not distinguishable'
    return f'{mean} [{low}, {high}]{verdict}'
