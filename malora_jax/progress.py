"""Progress of long computations: a bar in a terminal, lines of text elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len, set_cell_size

_T = TypeVar('_T')
# Minimum time in seconds between two updates of a terminal, and between two lines of text.
REDRAW_SECONDS, LINE_SECONDS = 0.1, 20.0
# Work that takes less time than this shows no progress in `track`.
DELAY_SECONDS = 1.0
# Limits of the display in a terminal: columns of the bar, and lines with losses of tasks.
_MIN_BAR, _MAX_BAR, _MAX_LOSS_LINES = 4, 30, 3


class ProgressBar:
    """Progress of a computation on stderr; a context manager.

    A terminal shows a bar with the speed and the remaining time, and the losses of the tasks in the
    lines below. Log files, notebooks and terminals with TERM=dumb cannot redraw lines. They get a
    line of text at the start, at the end and every 20 seconds in between:

        train: step 120/240, loss 0.412, 418 tokens/s, chain_sum 1.01, gcd 0.88

    JAX compiles a computation before its first step. 'compiling…' is therefore shown until the
    first update, and the time until then does not count for the speed.

    Example:
        with ProgressBar('train', total=240, unit='step') as bar:
            for step in range(240):
                loss = train_step(step)
                bar.update(step + 1, [f'loss {loss:.3f}'])

    Attributes:
        total: Amount of work, in units; None if it is unknown.
        done: Amount of work that is done, in units.
    """

    def __init__(
        self, label: str | None, total: int | None, unit: str, done: float = 0, delay: float = 0
    ):
        """Create the bar; `__enter__` shows it.

        Args:
            label: Name of the computation; None to show nothing.
            total: Amount of work, in units; None if it is unknown.
            unit: Name of a unit, in the singular.
            done: Amount of work that is already done, for example before a run was interrupted.
            delay: Seconds before the progress is shown. Shorter work shows nothing.
        """
        self.total, self.done = total, done
        self._label, self._unit, self._initial = label, unit, done
        self._file = sys.stderr
        self._redraws = self._file.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'
        self._facts: Sequence[str] = ()
        self._losses: Mapping[str, float] = {}
        self._start_time = time.monotonic()
        self._first_time = self._next_time = self._start_time + delay
        self._update_time: float | None = None  # Time of the first update.
        self._has_ended = False
        self._drawn: list[str] = []  # Lines that are on the screen, or the last line of text.

    def __enter__(self) -> 'ProgressBar':
        self._facts = ['compiling…']
        self._show()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._has_ended = error is None
        if self._has_ended:
            self._next_time = self._first_time
            self._show()
        if self._redraws and self._drawn:
            self._print('\n')

    def update(
        self, done: float, facts: Sequence[str] = (), losses: Mapping[str, float] | None = None
    ) -> None:
        """Set the progress.

        Args:
            done: Amount of work that is done, in units.
            facts: Short texts about the current state, such as 'loss 0.913'.
            losses: Loss of each task, by its name.
        """
        if self._update_time is None:
            self._update_time = time.monotonic()
        self.done, self._facts, self._losses = done, facts, losses or {}
        self._show()

    def advance(self, count: float, facts: Sequence[str] = ()) -> None:
        """Add to the progress.

        Args:
            count: Amount of work that was done since the last update, in units; may be 0.
            facts: Short texts about the current state.
        """
        self.update(self.done + count, facts)

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Print a line above the bar.

        Args:
            text: Line to print.
            file: File to print to; None for stdout.
        """
        if self._label is None:
            return
        if self._redraws:
            self._print(f'{self._to_first_line()}\x1b[J')
            self._drawn = []
            self._next_time = self._first_time
        print(text, file=file, flush=True)
        self._show()

    def _show(self) -> None:
        """Show the progress, unless it was shown a short time ago."""
        now = time.monotonic()
        if self._label is None or now < self._next_time:
            return
        self._next_time = now + (REDRAW_SECONDS if self._redraws else LINE_SECONDS)
        if self._redraws:
            # In the last column, terminals differ in where the cursor is.
            lines = self._lines((os.get_terminal_size(self._file.fileno()).columns or 80) - 1)
            self._print(self._to_first_line() + '\x1b[K\n'.join(lines) + '\x1b[J')
            self._drawn = lines
        elif (lines := [self._text()]) != self._drawn:
            self._print(f'{lines[0]}\n')
            self._drawn = lines

    def _print(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def _to_first_line(self) -> str:
        above = len(self._drawn) - 1
        return f'\r\x1b[{above}A' if above > 0 else '\r'

    def _text(self) -> str:
        """Return the progress as a line of text."""
        losses = [f'{task} {loss:.2f}' for task, loss in self._losses.items()]
        return (
            f'{self._label}: {", ".join([f"{self._unit} {self._count()}", *self._facts, *losses])}'
        )

    def _lines(self, width: int) -> list[str]:
        """Return the lines to draw in a terminal, each with at most `width` columns."""
        # The count has a fixed width, so that the bar stays in its place.
        count = self._count().rjust(2 * len(str(self.total)) + 1 if self.total else 0)
        text = '  '.join([count, *self._times(), *self._facts])
        columns = min(_MAX_BAR, width - cell_len(f'{self._label}  {text}'))
        bar = ''
        if self.total and columns >= _MIN_BAR:
            filled = round(columns * self.done / self.total)
            bar = '█' * filled + '░' * (columns - filled) + ' '
        lines = [f'{self._label} {bar}{text}', *_loss_lines(self._losses, width)]
        return [set_cell_size(line, width) if cell_len(line) > width else line for line in lines]

    def _count(self) -> str:
        """Return the number of finished units, and of all units if that is known."""
        count = str(int(self.done + 1e-6))  # A sum of thirds may be slightly below a whole number.
        return count if self.total is None else f'{count}/{self.total}'

    def _times(self) -> list[str]:
        """Return the speed and the remaining time, as far as they are known."""
        now, done = time.monotonic(), self.done - self._initial
        if self._update_time is None or done <= 0:
            return []
        seconds = (now - self._update_time) / done
        unit = self._unit
        speed = f'{seconds:.1f} s/{unit}' if seconds >= 1 else f'{1 / (seconds or 1):.1f} {unit}s/s'
        if self._has_ended:
            return [speed, f'in {_format_seconds(now - self._start_time)}']
        if self.total is None:
            return [speed]
        return [speed, f'eta {_format_seconds(seconds * (self.total - self.done))}']


def track(items: Iterable[_T], label: str, unit: str, total: int | None = None) -> Iterator[_T]:
    """Yield items, and show the progress if they take more than `DELAY_SECONDS`.

    Args:
        items: Items to yield.
        label: Name of the work.
        unit: Name of an item, in the singular.
        total: Number of items; None for their length, which is unknown if they have none.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with ProgressBar(label, total, unit, delay=DELAY_SECONDS) as bar:
        bar.update(0)
        for item in items:
            yield item
            bar.advance(1)


def _loss_lines(losses: Mapping[str, float], width: int) -> list[str]:
    """Return indented lines with the loss of each task.

    If the losses need more than `_MAX_LOSS_LINES` lines, the last line ends with the number of
    hidden tasks.
    """
    words = [f'{task} {loss:.2f}' for task, loss in losses.items()]
    for hidden in range(len(words)):
        shown = words[: len(words) - hidden]
        note = [f'+{hidden} task{"s" if hidden > 1 else ""}'] if hidden else []
        lines = _fill([*shown, *note], width)
        if len(lines) <= _MAX_LOSS_LINES:
            return lines
    return []


def _fill(words: Sequence[str], width: int) -> list[str]:
    """Distribute words over indented lines of at most `width` columns, unless a word is wider."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f'{lines[-1]}  {word}') <= width:
            lines[-1] += f'  {word}'
        else:
            lines.append(f'  {word}')
    return lines


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
