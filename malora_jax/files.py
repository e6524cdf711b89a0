"""Writing files so that none is ever left half-written."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end.

    After an error the temporary file is removed and `path` is as it was.
    """
    # The suffix stays last: writers choose their format by it.
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes an indented JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', 'utf-8')


def write_json_lines(path: pathlib.Path, rows: list[Any]) -> None:
    """Writes one JSON value a line."""
    with replacing(path) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        temporary.write_text(''.join(lines), 'utf-8')
