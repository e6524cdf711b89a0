"""Files: written so that none is ever left half-written, and read with every check there is."""

import contextlib
import fcntl
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from malora_jax import schema
from malora_jax.errors import UserError

LOCK = '.lock'
# What a user can do about a broken file of a run; never to remove it, which might mix results.
RESTORE = 'restore it from a copy'
# Of a JSON file; the largest that are read, tokenizers, have some 30 MB.
_MOST_BYTES = 2**28
_MOST_DEPTH = 100


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

    What is refused leaves nothing behind: if the body raises a UserError before anything else is in
    the directory, the lock file and the directories that were made for it are removed.

    Args:
        directory: to be locked, by the file `.lock` in it.
        busy: what is said if another process has it.

    Raises:
        UserError: another process has it.
    """
    with removed_if_refused(directory, LOCK), _lock(directory / LOCK, busy):
        yield


@contextlib.contextmanager
def removed_if_refused(directory: pathlib.Path, *temporary: str) -> Iterator[None]:
    """Make a directory, and remove it again if the body raises a UserError and left it unused.

    Args:
        directory: The directory; parents are made and removed with it.
        temporary: Names of files in it, such as a lock, that do not count as use.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    there = {name for name in temporary if (directory / name).exists()}
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UserError:
        if {path.name for path in directory.iterdir()} <= {*temporary}:
            for name in {*temporary} - there:
                (directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Another process may have begun to use one.
                for path in missing:
                    path.rmdir()
        raise


@contextlib.contextmanager
def _lock(path: pathlib.Path, busy: str) -> Iterator[None]:
    while True:
        with path.open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(busy) from error
            # A refused process may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return
        path.parent.mkdir(parents=True, exist_ok=True)


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


def read_json(path: pathlib.Path, kind: Any = Any, remedy: str = RESTORE) -> Any:
    """Read a JSON file and check its content.

    Args:
        path: The file.
        kind: Type hint that the content must match; see `schema`.
        remedy: What a user can do about a broken file, for messages.

    Raises:
        UserError: The file is not a regular file, not UTF-8, not JSON, nested too deeply, or too
            large; or the content does not match.
        FileNotFoundError: There is no file.
    """
    check_regular(path)
    if path.stat().st_size > _MOST_BYTES:
        raise _broken(str(path), f'has more than {_MOST_BYTES:,} bytes', remedy)
    value = parse_json(path.read_bytes(), str(path), remedy)
    check_content(kind, value, str(path), remedy)
    return value


def read_json_lines(path: pathlib.Path, kind: Any = Any, remedy: str = RESTORE) -> list[Any]:
    """Read a file with one JSON value per line; a last line that a kill cut short is skipped.

    Args:
        path: The file.
        kind: Type hint that each value must match; see `schema`.
        remedy: What a user can do about a broken file, for messages.

    Raises:
        UserError: As `read_json`, with the line's number.
        FileNotFoundError: There is no file.
    """
    check_regular(path)
    lines = path.read_bytes().split(b'\n')[:-1]
    rows = []
    for place, row in parse_json_lines(lines, f'{path}:', remedy, skip_blank=False):
        check_content(kind, row, place, remedy)
        rows.append(row)
    return rows


def parse_json_lines(
    lines: Iterable[bytes | str],
    file: str,
    remedy: str = '',
    decode: Callable[[str], Any] = json.loads,
    skip_blank: bool = True,
) -> Iterator[tuple[str, Any]]:
    r"""Parse lines with one JSON value each; every reader of JSON Lines calls this.

    Args:
        lines: Lines that end at a line feed, such as an open binary file or `text.split('\n')`.
            `str.splitlines` would also split within JSON strings.
        file: Start of the place of each line, such as 'rows.jsonl line '.
        remedy: What a user can do about a broken line, for messages.
        decode: Parser of one line.
        skip_blank: Whether blank lines are skipped rather than refused.

    Yields:
        The place, `file` and the line's number from 1, and the value.

    Raises:
        UserError: As `parse_json`, with the place.
    """
    for number, line in enumerate(lines, start=1):
        if not skip_blank or line.strip():
            place = f'{file}{number}'
            yield place, parse_json(line, place, remedy, decode)


def check_regular(path: pathlib.Path) -> None:
    """Check that a path names a regular file: opening a FIFO or a device may block for ever.

    Raises:
        UserError: It is something else.
        FileNotFoundError: It does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        what = 'a directory' if path.is_dir() else 'a pipe, socket or device'
        raise UserError(f'{path} is {what}; it must be a regular file.')


def parse_json(
    content: bytes | str,
    place: str,
    remedy: str = '',
    decode: Callable[[str], Any] = json.loads,
) -> Any:
    """Parse JSON from outside; every other module that reads JSON calls this.

    Args:
        content: UTF-8; or text that is already decoded, in which half characters are the caller's
            business.
        place: File, or file and line, for messages.
        remedy: What a user can do about it, for messages; '' if that is clear.
        decode: What parses the text.

    Raises:
        UserError: It is not UTF-8 or not JSON, is nested too deeply, or has a number of thousands
            of digits or half a character.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = decode(text)
    except UnicodeDecodeError as error:
        raise _broken(place, 'is not UTF-8', remedy) from error
    except json.JSONDecodeError as error:
        line = f'{place} line {error.lineno}' if '\n' in text.rstrip() else place
        what = f'is not valid JSON ({error.msg} at column {error.colno})'
        raise _broken(line, what, remedy) from error
    except RecursionError as error:
        raise _broken(place, 'is nested too deeply', remedy) from error
    except ValueError as error:
        raise _broken(place, 'holds a number of too many digits', remedy) from error
    # Brackets are counted first because that takes no time; most of them may stand in strings.
    if text.count('[') + text.count('{') > _MOST_DEPTH and _is_deeper(value, _MOST_DEPTH):
        raise _broken(place, 'is nested too deeply', remedy)
    # Half a character can only be there as an escape.
    if isinstance(content, bytes) and ('\\ud' in text or '\\uD' in text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _broken(place, 'holds a half of a character', remedy) from error
    return value


def check_content(kind: Any, value: Any, place: str, remedy: str = '') -> None:
    """Check a parsed value against a type hint.

    Raises:
        UserError: It does not match, with the place and the field.
    """
    fault = None if kind is Any else schema.find_fault(kind, value)
    if fault:
        raise _broken(f'{place}:', str(fault), remedy)


def _broken(place: str, what: str, remedy: str) -> UserError:
    return UserError(f'{place} {what}{remedy and f": {remedy}"}.')


def _is_deeper(value: Any, most: int) -> bool:
    """Return whether lists and objects are nested more than `most` times."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
