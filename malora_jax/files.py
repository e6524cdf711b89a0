"""Atomic file writes, directory locks, and reading of JSON files with thorough checks."""

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

LOCK_FILE = '.lock'
# Remedy for a broken file of a run, for messages. They never suggest removing the file, because
# the same command would then mix the results of two runs.
RESTORE_REMEDY = 'restore it from a copy'
# Maximum size of a JSON file; the largest files in use, of tokenizers, have about 30 MB.
_MAX_JSON_BYTES = 2**28
_MAX_DEPTH = 100  # Maximum nesting of lists and objects.


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path to write to; at the end, that file atomically replaces `path`.

    After an error the temporary file is removed, and `path` is unchanged. For example:

        with atomic_write(pathlib.Path('table.csv')) as temporary:
            temporary.write_text('a,b')

    Args:
        path: File to create or replace.
    """
    # Keep the suffix, because some writers choose the file format by the suffix.
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        yield temporary
        with temporary.open('rb') as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache_directory(name: str) -> pathlib.Path:
    """Return a directory in the user's cache, in $XDG_CACHE_HOME or ~/.cache.

    Args:
        name: Name of the directory in `malora_jax`.
    """
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(cache) / 'malora_jax' / name


@contextlib.contextmanager
def lock_directory(directory: pathlib.Path, busy_message: str) -> Iterator[None]:
    """Create a directory and hold an exclusive lock on it; a killed process loses its lock.

    If the `with` block raises a UserError while the directory holds nothing but the lock file, the
    lock file and the directories created here are removed.

    Args:
        directory: Directory to lock, with the file `.lock` in it.
        busy_message: Error message if another process holds the lock.

    Raises:
        UserError: Another process holds the lock.
    """
    with provisional_directory(directory, LOCK_FILE), _lock(directory / LOCK_FILE, busy_message):
        yield


@contextlib.contextmanager
def provisional_directory(directory: pathlib.Path, *ignored_files: str) -> Iterator[None]:
    """Create a directory; if the `with` block raises a UserError before writing to it, remove it.

    Args:
        directory: Directory to create; missing parents are created and removed with it.
        ignored_files: Names of files, such as a lock. If the block has written only these files
            to the directory, the directory is still removed.

    Raises:
        UserError: The `with` block raised it.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    existing = {name for name in ignored_files if (directory / name).exists()}
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UserError:
        if {path.name for path in directory.iterdir()} <= {*ignored_files}:
            for name in {*ignored_files} - existing:
                (directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Another process may use a directory now.
                for path in missing:
                    path.rmdir()
        raise


@contextlib.contextmanager
def _lock(path: pathlib.Path, busy_message: str) -> Iterator[None]:
    while True:
        with path.open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(busy_message) from error
            # Another process may have removed the file after a UserError, before it was locked.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return
        path.parent.mkdir(parents=True, exist_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file atomically, with a line feed at the end."""
    with atomic_write(path) as temporary:
        temporary.write_text(text + '\n', 'utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def write_json_lines(path: pathlib.Path, rows: list[Any]) -> None:
    """Write a JSON Lines file atomically, with one JSON value per line."""
    with atomic_write(path) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        temporary.write_text(''.join(lines), 'utf-8')


def read_json(path: pathlib.Path, expected_type: Any = Any, remedy: str = RESTORE_REMEDY) -> Any:
    """Read a JSON file and check its content.

    Args:
        path: File to read.
        expected_type: Type hint that the content must match; see `schema`.
        remedy: Advice about a broken file, for messages.

    Raises:
        UserError: The file is not a regular file, not UTF-8, not JSON, nested too deeply, or too
            large; or the content does not match `expected_type`.
        FileNotFoundError: There is no file.
    """
    check_regular_file(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise _broken(str(path), f'has more than {_MAX_JSON_BYTES:,} bytes', remedy)
    value = parse_json(path.read_bytes(), str(path), remedy)
    check_content(expected_type, value, str(path), remedy)
    return value


def read_json_lines(
    path: pathlib.Path, expected_type: Any = Any, remedy: str = RESTORE_REMEDY
) -> list[Any]:
    """Read a JSON Lines file; an incomplete last line, left by a killed process, is skipped.

    Args:
        path: File to read.
        expected_type: Type hint that each value must match; see `schema`.
        remedy: Advice about a broken file, for messages.

    Raises:
        UserError: The file is not a regular file, or a line is invalid as in `read_json`; the
            message contains the line number.
        FileNotFoundError: There is no file.
    """
    check_regular_file(path)
    lines = path.read_bytes().split(b'\n')[:-1]
    rows = []
    for location, row in parse_json_lines(lines, f'{path}:', remedy, skip_blank=False):
        check_content(expected_type, row, location, remedy)
        rows.append(row)
    return rows


def parse_json_lines(
    lines: Iterable[bytes | str],
    location_prefix: str,
    remedy: str = '',
    decode: Callable[[str], Any] = json.loads,
    skip_blank: bool = True,
) -> Iterator[tuple[str, Any]]:
    r"""Parse lines with one JSON value each; all readers of JSON Lines use this function.

    Args:
        lines: Lines separated at line feeds only, such as an open binary file or
            `text.split('\n')`; `str.splitlines` would also split within JSON strings.
        location_prefix: Text before the line number in messages, such as 'rows.jsonl line '.
        remedy: Advice about a broken line, for messages.
        decode: Function that parses one line.
        skip_blank: Whether blank lines are skipped rather than refused.

    Yields:
        The location (`location_prefix` followed by the line number, from 1), and the value.

    Raises:
        UserError: A line is invalid as in `parse_json`; the message contains the location.
    """
    for number, line in enumerate(lines, start=1):
        if not skip_blank or line.strip():
            location = f'{location_prefix}{number}'
            yield location, parse_json(line, location, remedy, decode)


def check_regular_file(path: pathlib.Path) -> None:
    """Check that a path is a regular file, because opening a FIFO or a device may block forever.

    Raises:
        UserError: The path is a directory, pipe, socket or device.
        FileNotFoundError: The path does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        what = 'a directory' if path.is_dir() else 'a pipe, socket or device'
        raise UserError(f'{path} is {what}; it must be a regular file.')


def parse_json(
    content: bytes | str,
    location: str,
    remedy: str = '',
    decode: Callable[[str], Any] = json.loads,
) -> Any:
    """Parse JSON from an external source; all other modules that read JSON use this function.

    Args:
        content: UTF-8 bytes, or decoded text. Only bytes are checked for unpaired surrogates.
        location: File, or file and line, for messages.
        remedy: Advice to the user, for messages; '' for none.
        decode: Function that parses the text.

    Raises:
        UserError: The content is not UTF-8 or not JSON, is nested too deeply, has a number with
            thousands of digits, or contains an unpaired surrogate (half a character).
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = decode(text)
    except UnicodeDecodeError as error:
        raise _broken(location, 'is not UTF-8', remedy) from error
    except json.JSONDecodeError as error:
        line = f'{location} line {error.lineno}' if '\n' in text.rstrip() else location
        what = f'is not valid JSON ({error.msg} at column {error.colno})'
        raise _broken(line, what, remedy) from error
    except RecursionError as error:
        raise _broken(location, 'is nested too deeply', remedy) from error
    except ValueError as error:
        raise _broken(location, 'has a number with too many digits', remedy) from error
    # Counting brackets is fast; the exact check follows, since brackets may be inside strings.
    if text.count('[') + text.count('{') > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH):
        raise _broken(location, 'is nested too deeply', remedy)
    # In UTF-8, an unpaired surrogate can only be written as an escape sequence.
    if isinstance(content, bytes) and ('\\ud' in text or '\\uD' in text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _broken(
                location, 'contains an unpaired surrogate, which is not valid Unicode text', remedy
            ) from error
    return value


def check_content(expected_type: Any, value: Any, location: str, remedy: str = '') -> None:
    """Check a parsed value against a type hint.

    Args:
        expected_type: Type hint; see `schema`.
        value: Parsed value.
        location: File, or file and line, for messages.
        remedy: Advice to the user, for messages; '' for none.

    Raises:
        UserError: The value does not match; the message contains the location and the field.
    """
    fault = None if expected_type is Any else schema.find_mismatch(expected_type, value)
    if fault:
        raise _broken(f'{location}:', str(fault), remedy)


def _broken(location: str, what: str, remedy: str) -> UserError:
    return UserError(f'{location} {what}{remedy and f": {remedy}"}.')


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Return whether lists and objects are nested more than `max_depth` levels deep."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
