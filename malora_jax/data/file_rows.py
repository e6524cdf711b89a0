"""Reader of the rows of JSON, JSONL, CSV, TSV and Parquet files, with the location of each row.

Text files are UTF-8, with or without a byte order mark, and may be compressed (see
`compressed_files`). In a row that is not valid UTF-8, the invalid fields are strings for which
`is_utf_8` is False. CSV and TSV files have one header line, unless the caller gives the column
names; a cell in double quotes may contain delimiters and line breaks. Blank lines are skipped. A
.json file is either an array of objects or has one object per line, because public datasets use
both.
"""

import csv
import io
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from malora_jax import files
from malora_jax.data.compressed_files import is_compressed, open_decompressed
from malora_jax.errors import UserError

# The csv module limits a cell to 128 KB by default. This is the largest limit that all platforms
# accept.
csv.field_size_limit(2**31 - 1)

# File formats that user tasks may have.
SUFFIXES = ('.jsonl', '.csv', '.tsv', '.parquet')
# Numbers are kept as strings, exactly as written. NaN is not valid JSON and counts as missing.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
_DELIMITERS = {'.csv': ',', '.tsv': '\t'}


class Row(NamedTuple):
    """One row of a data file.

    Attributes:
        location: File and line number, for messages; for Parquet and JSON arrays, file and row
            number. Lines and rows are numbered from 1.
        fields: Values by field name; numbers in JSON are strings, as written.
    """

    location: str
    fields: Mapping[str, Any]


def read_rows(path: pathlib.Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Return an iterator over the rows of a file, whose format is determined by its suffix.

    Args:
        path: File with a suffix from `SUFFIXES` or .json, in upper or lower case; all formats but
            Parquet may be followed by .gz, .bz2 or .zst.
        columns: Column names of a CSV or TSV file without a header line.

    Raises:
        UserError: The file is missing, has an unknown suffix, or is broken; the message names the
            line if there is one.
    """
    check_file(path)
    kind = file_kind(path)
    if kind == '.parquet' and not is_compressed(path):
        return _read_parquet(path)
    if kind == '.jsonl':
        return _json_lines(path, _read_text(path))
    if kind == '.json':
        return _read_json(path)
    if kind in _DELIMITERS:
        return _read_table(path, _DELIMITERS[kind], columns)
    known = ', '.join(sorted({*SUFFIXES, '.json'}))
    raise UserError(f'{path} has an unsupported type: the name must end in {known}.')


def file_kind(path: pathlib.Path) -> str:
    """Return the suffix in lower case; for a compressed file, the suffix before .gz or the like."""
    return (path.with_suffix('') if is_compressed(path) else path).suffix.lower()


def check_file(path: pathlib.Path) -> None:
    """Check that the path names an existing regular file.

    Raises:
        UserError: There is no such file, or it is a directory, a pipe, a socket or a device.
    """
    if path.is_dir():
        raise UserError(f'{path} is a directory; it must be a data file.')
    if not path.exists():
        raise UserError(f'There is no data file {path} (looked for in {pathlib.Path.cwd()}).')
    files.check_regular_file(path)


def _read_json(path: pathlib.Path) -> Iterator[Row]:
    text = _read_text(path)
    if not text.lstrip().startswith('['):
        yield from _json_lines(path, text)
        return
    objects = files.parse_json(text, str(path), decode=DECODER.decode)
    for number, fields in enumerate(objects, start=1):
        location = f'{path} row {number}'
        _check_object(location, fields)
        yield Row(location, fields)


def _json_lines(path: pathlib.Path, text: str) -> Iterator[Row]:
    lines = files.parse_json_lines(
        text.split('\n'), f'{path} line ', 'each line must be one JSON object', DECODER.decode
    )
    for location, fields in lines:
        _check_object(location, fields)
        yield Row(location, fields)


def _check_object(location: str, fields: Any) -> None:
    if not isinstance(fields, dict):
        raise UserError(f'{location} is not a JSON object, such as {{"question": "…"}}.')


def _read_table(path: pathlib.Path, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    lines = _read_cells(path, delimiter)
    names = list(columns) or [name.strip() for name in next(lines, (1, []))[1]]
    _check_duplicate_columns(path, names)
    if not is_utf_8(''.join(names)):
        raise UserError(f'{path} line 1 is not UTF-8: save the file as UTF-8.')
    expected = 'the expected number is' if columns else 'the header has'
    for number, cells in lines:
        location = f'{path} line {number}'
        if len(cells) != len(names):
            raise UserError(
                f'{location}: the number of cells is {len(cells)}, but {expected} {len(names)}; '
                f'put cells that contain {delimiter!r} or a line break in double quotes.'
            )
        yield Row(location, dict(zip(names, cells, strict=True)))


def _read_cells(path: pathlib.Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, with the number of the row's first line."""
    text = io.StringIO(_read_text(path), newline='')
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f'{path} line {number} is not valid {file_kind(path)[1:].upper()} ({error}).'
            ) from error
        if cells:
            yield number, cells


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_duplicate_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f'{path} row {number}', fields)
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).partition('\n')[0]
        raise UserError(f'{path} is not a complete Parquet file ({first_line}).') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} row {number + 1} or a later one is not UTF-8.') from error


def _check_duplicate_columns(path: pathlib.Path, names: Sequence[str]) -> None:
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        raise UserError(f'{path} has more than one column {duplicates[0]!r}.')


def _read_text(path: pathlib.Path) -> str:
    with open_decompressed(path) as file:
        return file.read().decode('utf-8-sig', 'surrogateescape')


def is_utf_8(text: str) -> bool:
    """Return whether a string is valid UTF-8, without lone surrogates or undecoded bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
