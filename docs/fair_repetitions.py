"""Runs of the fair comparison that were made twice, with the same seed and other initial values.

Between the two, the code changed such that a seed gives other initial values and dropout masks.
Data and their order are the same, so the two losses show how much chance there is in one run.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from docs.tables_fair import EARLIER, NO_RUNS, groups
from malora_jax import markdown
from malora_jax.analysis import cells


def _losses() -> dict[str, dict[int, tuple[float, float]]]:
    """Return the first and the second loss by row and seed."""
    second = groups('fair_methods')
    return {
        row: {
            seed: (loss, second[row].by_seed('loss')[seed])
            for seed, loss in first.by_seed('loss').items()
        }
        for row, first in groups(EARLIER).items()
    }


def table() -> str:
    """Return the table of both losses by row and seed."""
    rows = _losses()
    if not rows:
        return NO_RUNS
    seeds = sorted({seed for losses in rows.values() for seed in losses})
    lines = [('row', *(f'seed {seed}' for seed in seeds))]
    for row, losses in rows.items():
        texts = {
            seed: f'{cells.loss(first)} → {cells.loss(second)}, {second - first:+.3f}'
            for seed, (first, second) in losses.items()
        }
        lines.append((f'`{row}`', *(texts.get(seed, '') for seed in seeds)))
    return markdown.table(lines)


def values() -> dict[str, float]:
    """Return the root mean square of the changes and the largest one, in nats per token."""
    changes = [second - first for losses in _losses().values() for first, second in losses.values()]
    if not changes:
        return {}
    return {
        'root_mean_square': statistics.fmean(change**2 for change in changes) ** 0.5,
        'largest': max(map(abs, changes)),
    }


PARTS: dict[str, Callable[[], str]] = {'fair repetitions': table}
VALUES: dict[str, Callable[[], Mapping[str, Any]]] = {'repetitions': values}
