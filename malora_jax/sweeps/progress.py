"""Progress display of a sweep: a live table in a terminal, else a line for each state change."""

import collections
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from malora_jax.sweeps.status import RunStatus

# States with potentially many runs come last, because a small terminal cuts the table off.
_ORDER = ('running', 'failed', 'stopped', 'waiting', 'finished')
_STYLES = {'running': 'bold', 'failed': 'red', 'waiting': 'dim', 'finished': 'green'}
# Terminal lines that the table's head, frame and title need.
_FRAME_LINES = 7


class ProgressDisplay:
    """Progress display of a sweep's runs; a context manager."""

    def __init__(self, console: Console | None = None):
        """Create the display; `__enter__` starts it.

        Args:
            console: Console to print to; None for stdout.
        """
        self._console = console or Console()
        self._live: Live | None = None
        self._printed_states: dict[str, str] = {}

    def __enter__(self) -> 'ProgressDisplay':
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._live.stop()

    def show(self, statuses: Mapping[str, RunStatus]) -> None:
        """Redraw the table in a terminal; elsewhere, print each run whose state has changed.

        Args:
            statuses: Status of each run by name.
        """
        if self._live:
            rows = max(1, self._console.height - _FRAME_LINES)
            self._live.update(_table(statuses, rows), refresh=True)
            return
        for name, status in statuses.items():
            if self._printed_states.get(name) != status.state:
                self._printed_states[name] = status.state
                self._print_state(name, status)

    def _print_state(self, name: str, status: RunStatus) -> None:
        if status.state != 'waiting':
            detail = _detail(status)
            text = f'{name}: {status.state}' + (f', {detail}' if detail else '')
            print(text, file=self._console.file, flush=True)


def count_states(statuses: Mapping[str, RunStatus]) -> str:
    """Return the number of runs in each state, such as '3 finished, 1 running'.

    Args:
        statuses: Status of each run by name.
    """
    counts = collections.Counter(status.state for status in statuses.values())
    return ', '.join(f'{counts[state]} {state}' for state in reversed(_ORDER) if counts[state])


def _table(statuses: Mapping[str, RunStatus], rows: int) -> Table:
    table = Table('run', 'state', 'step', 'loss', 'score', 'tokens/s', title=count_states(statuses))
    ordered = sorted(statuses.items(), key=lambda item: _ORDER.index(item[1].state))
    for name, status in ordered[:rows]:
        style = _STYLES.get(status.state)
        table.add_row(name, status.error or status.state, *_cells(status), style=style)
    if len(ordered) > rows:
        table.caption = f'and {len(ordered) - rows} more'
    return table


def _cells(status: RunStatus) -> list[str]:
    step = f'{status.step}/{status.steps}' if status.steps else str(status.step or '')
    return [
        step,
        '' if status.loss is None else f'{status.loss:.3f}',
        '' if status.score is None else f'{100 * status.score:.1f}%',
        '' if status.tokens_per_second is None else f'{status.tokens_per_second:,.0f}',
    ]


def _detail(status: RunStatus) -> str:
    if status.error:
        return status.error
    if status.state == 'finished':
        return f'score {100 * (status.score or 0):.1f}%, loss {status.loss:.3f}'
    return f'step {status.step}' if status.step else ''
