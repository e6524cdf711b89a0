"""Rows of JSONL, CSV, TSV and Parquet files, each with its place for messages.

Text files are UTF-8, with or without a byte order mark. Tables have one header line; a cell in
double quotes may hold delimiters and line breaks. Blank lines are skipped.
"""

import csv
import importlib
import importlib.util
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from malora_jax.errors import UserError

# A cell may be as long as the file; the default is 128 KB. No larger number fits everywhere.
csv.field_size_limit(2**31 - 1)

SUFFIXES = ('.jsonl', '.csv', '.tsv', '.parquet')


class Row(NamedTuple):
    """One row.

    Attributes:
        place: file and line, or file and row of Parquet, which has no lines; both from 1.
        fields: value by name; numbers of JSON are text, as they were written.
    """

    place: str
    fields: Mapping[str, Any]


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a file, read by its suffix.

    Args:
        path: a file whose suffix is one of `SUFFIXES`, in any case.

    Raises:
        UserError: the file is missing, not of its kind, or broken, with the line at fault.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == '.parquet':
        return _parquet(path)
    if suffix == '.jsonl':
        return _json_lines(path)
    return _table(path, ',' if suffix == '.csv' else '\t')


def check_file(path: pathlib.Path) -> None:
    """Checks that there is a file.

    Raises:
        UserError: there is none, or it is a directory.
    """
    if path.is_dir():
        raise UserError(f'{path} is a directory; it must be a data file.')
    if not path.exists():
        raise UserError(f'There is no data file {path} (looked for in {pathlib.Path.cwd()}).')


def _json_lines(path: pathlib.Path) -> Iterator[Row]:
    # Only a line feed ends a line here: str.splitlines would also split within JSON strings.
    for number, line in enumerate(_text(path).split('\n'), start=1):
        if not line.strip():
            continue
        place = f'{path} line {number}'
        try:
            # Numbers stay as they were written; NaN, which is not JSON, is a missing value.
            fields = json.loads(line, parse_int=str, parse_float=str, parse_constant=lambda _: None)
        except json.JSONDecodeError as error:
            raise UserError(
                f'{place} is not valid JSON ({error.msg} at column {error.colno}); each line must '
                'be one JSON object.'
            ) from error
        except RecursionError as error:
            raise UserError(f'{place} is nested too deeply.') from error
        if not isinstance(fields, dict):
            raise UserError(f'{place} is not a JSON object, such as {{"question": "…"}}.')
        yield Row(place, fields)


def _table(path: pathlib.Path, delimiter: str) -> Iterator[Row]:
    lines = _cells(path, delimiter)
    _, header = next(lines, (1, []))
    names = [name.strip() for name in header]
    _check_twins(path, names)
    for number, cells in lines:
        place = f'{path} line {number}'
        if len(cells) != len(names):
            raise UserError(
                f'{place} must have as many cells as the header, {len(names)}, not {len(cells)}; '
                f'one with {delimiter!r} or a line break in it must be in double quotes.'
            )
        yield Row(place, dict(zip(names, cells, strict=True)))


def _cells(path: pathlib.Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not blank, with the number of its first line."""
    text = io.StringIO(_text(path), newline='')
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f'{path} line {number} is not valid {path.suffix[1:].upper()} ({error}).'
            ) from error
        if cells:
            yield number, cells


def _parquet(path: pathlib.Path) -> Iterator[Row]:
    if importlib.util.find_spec('pyarrow') is None:
        raise UserError(f"{path} needs the package pyarrow: pip install '.[parquet]'.")
    arrow, parquet = (importlib.import_module(name) for name in ('pyarrow', 'pyarrow.parquet'))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_twins(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f'{path} row {number}', fields)
    except (arrow.ArrowException, OSError) as error:
        first_line = str(error).partition('\n')[0]
        raise UserError(f'{path} is not a complete Parquet file ({first_line}).') from error


def _check_twins(path: pathlib.Path, names: Sequence[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise UserError(f'{path} has more than one column {twins[0]!r}.')


def _text(path: pathlib.Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b'\n') + 1
        raise UserError(f'{path} line {number} is not UTF-8: save the file as UTF-8.') from error
