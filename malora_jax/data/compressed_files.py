"""Reading of files that may be compressed with gzip, bzip2 or Zstandard, by their suffix."""

import bz2
import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow

from malora_jax.errors import UserError


class _Format(NamedTuple):
    """A compression format: its name, and a function that opens a file for reading."""

    name: str
    open: Callable[[pathlib.Path], Any]


def _open_zstandard(path: pathlib.Path) -> io.BufferedReader:
    # Python has had a module for Zstandard since 3.14; PyArrow has the format in all versions.
    stream = pyarrow.input_stream(str(path), compression='zstd')
    return io.BufferedReader(cast(io.RawIOBase, stream))


_FORMATS = {
    '.gz': _Format('gzip', gzip.open),
    '.bz2': _Format('bzip2', bz2.open),
    '.zst': _Format('Zstandard', _open_zstandard),
}


def is_compressed(path: pathlib.Path) -> bool:
    """Return whether the name of a file ends in the suffix of a compressed file, such as .gz."""
    return path.suffix.lower() in _FORMATS


@contextlib.contextmanager
def open_decompressed(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file for reading in binary mode, and decompress it if its suffix says so.

    Raises:
        UserError: While the file is read: it is truncated, damaged, or in another format.
        OSError: The file cannot be read.
    """
    if not is_compressed(path):
        with path.open('rb') as plain:
            yield plain
        return
    name, open_file = _FORMATS[path.suffix.lower()]
    try:
        with open_file(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path} is not a complete {name} file ({error}).') from error
