"""Writing files so that none is ever left half-written."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from malora_jax.errors import UserError

LOCK = '.lock'


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end.

    After an error the temporary file is removed and `path` is as it was.
    """
    # The suffix stays last: writers choose their format by it.
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        yield temporary
        with temporary.open('rb') as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: pathlib.Path, busy: str) -> Iterator[None]:
    """Makes a directory and keeps other processes out; the lock of a killed one is gone with it.

    Args:
        directory: to be locked, by the file `.lock` in it.
        busy: what is said if another process has it.

    Raises:
        UserError: another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text, and a line feed after it."""
    with replacing(path) as temporary:
        temporary.write_text(text + '\n', 'utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes an indented JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def write_json_lines(path: pathlib.Path, rows: list[Any]) -> None:
    """Writes one JSON value a line."""
    with replacing(path) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        temporary.write_text(''.join(lines), 'utf-8')


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        return json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise UserError(f'{path} is not valid JSON ({error}): restore or remove it.') from error


def read_json_lines(path: pathlib.Path) -> list[Any]:
    """Reads one JSON value a line; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is not JSON.
    """
    # Only a line feed ends a line here: str.splitlines would also split within JSON strings.
    lines = path.read_bytes().split(b'\n')
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            message = f'{path}:{number} is not valid JSON: restore or remove the file.'
            raise UserError(message) from error
    return rows
