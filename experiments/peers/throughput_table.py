"""Table of the throughput of servers, by number of clients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax import markdown


def format_table(rates: Mapping[str, Mapping[Any, Sequence[float]]]) -> str:
    """Return the medians of all rounds, with quartiles, as a Markdown table.

    Args:
        rates: Tokens per second in each round, by name of the server and number of clients.
    """
    counts = list(next(iter(rates.values())))
    rows = [['tokens/s by clients', *map(str, counts)]]
    for name, by_count in rates.items():
        cells = []
        for count in counts:
            low, middle, high = np.percentile(by_count[count], [25, 50, 75])
            cells.append(f'{middle:.1f} ({low:.1f}–{high:.1f})')
        rows.append([name, *cells])
    return markdown.table(rows)
