"""Tables in Markdown."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells, its head first."""
    head, *rest = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([head, '|---' * len(rows[0]) + '|', *rest])
