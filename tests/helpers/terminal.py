"""A terminal for tests: a pseudo-terminal whose screen is recorded."""

import contextlib
import os
import re
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

# Output of a program in a terminal: a control sequence, a control character, or text.
_PIECES = re.compile(
    r'\x1b\[(?P<count>\d*)(?P<action>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)'
)


class Screen:
    """Screen of a terminal, on which all characters are one column wide.

    The screen does not scroll, and long lines do not wrap. Lines of a progress bar must fit; they
    are those that end with the erasure of the rest of the line or of the screen.

    Attributes:
        lines: Lines on the screen, from the top.
        frames: Text of the screen after each time that its end was erased, which is how a progress
            bar ends its drawing.
    """

    def __init__(self, columns: int):
        self._columns = columns
        self._row = self._column = 0
        self.lines = ['']
        self.frames: list[str] = []

    @property
    def text(self) -> str:
        """Text of the screen."""
        return '\n'.join(line.rstrip() for line in self.lines)

    def feed(self, output: str) -> None:
        """Show what a program has written."""
        position = 0
        while position < len(output):
            piece = _PIECES.match(output, position)
            assert piece, f'An unknown control sequence: {output[position : position + 20]!r}'
            position = piece.end()
            if piece['control'] == '\r':
                self._column = 0
            elif piece['control'] == '\n':
                self._row += 1
                self.lines += [''] * (self._row == len(self.lines))
            elif piece['text']:
                self._write(piece['text'])
            else:
                self._act(piece['action'], int(piece['count'] or 1))

    def _write(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        end = self._column + len(text)
        self.lines[self._row] = line[: self._column] + text + line[end:]
        self._column = end

    def _act(self, action: str, count: int) -> None:
        if action == 'A':
            self._row -= count
            assert self._row >= 0, 'The cursor leaves the screen.'
            return
        assert action in 'JK', f'An unknown control sequence ends with {action}.'
        assert self._column < self._columns, f'A line is too wide: {self.lines[self._row]!r}'
        self.lines[self._row] = self.lines[self._row][: self._column]
        if action == 'J':
            del self.lines[self._row + 1 :]
            self.frames.append(self.text)


@contextlib.contextmanager
def terminal(columns: int, kind: str = 'xterm') -> Iterator[Screen]:
    """Redirect stdout and stderr to a pseudo-terminal.

    Args:
        columns: Width of the terminal.
        kind: Value of the environment variable TERM.

    Yields:
        The screen, which is complete after the block.
    """
    screen = Screen(columns)
    output: list[bytes] = []
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))

    def read() -> None:
        with contextlib.suppress(OSError):  # The other end is closed.
            while data := os.read(master, 2**16):
                output.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(slave, 'w', encoding='utf-8') as file, pytest.MonkeyPatch.context() as patch:
            patch.setenv('TERM', kind)
            patch.setattr(sys, 'stdout', file)
            patch.setattr(sys, 'stderr', file)
            yield screen
    finally:
        reader.join()
        os.close(master)
    screen.feed(b''.join(output).decode())
