"""Formatting of Markdown tables."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        rows: Cells of each row; the first row is the header.
    """
    head, *rest = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([head, '|---' * len(rows[0]) + '|', *rest])
