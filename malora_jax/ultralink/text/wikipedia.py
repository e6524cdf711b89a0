"""Readers of Wikipedia dumps, or of any documents with an id, a title and a text.

A file has one of three formats, which its name or its beginning determines:

- Parquet, as in the dataset wikimedia/wikipedia.
- Output of WikiExtractor: each document is between <doc id="…" url="…" title="…"> and </doc>.
- JSON Lines, such as the output of WikiExtractor with `--json`.

The last two may be compressed (see `compressed_files`), as WikiExtractor does with `--compress`.
"""

import codecs
import html
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from malora_jax.data.compressed_files import open_decompressed
from malora_jax.data.file_rows import Row, check_file, read_rows
from malora_jax.errors import UserError
from malora_jax.ultralink.shards import read_json_rows

_DOC_START = re.compile(r'<doc\s+(.*)>\s*')
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_DOC_END = '</doc>'


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the documents of files and directories one at a time, in the order of file names.

    Yields:
        Rows with the fields of the file, which should include `id`, `title` and `text`.

    Raises:
        UserError: A path is missing, a directory has no files, or a document is malformed; the
            message names the file and line.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob('[!.]*') if file.is_file())
            if not inside:
                raise UserError(f'{path} has no files.')
            for file in inside:
                yield from _read(file)
        else:
            yield from _read(path)


def _read(path: pathlib.Path) -> Iterator[Row]:
    check_file(path)
    if path.suffix.lower() == '.parquet':
        return read_rows(path)
    with open_decompressed(path) as lines:
        first = next((line for line in lines if line.strip()), b'')
    has_markup = first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b'<')
    return _read_wikiextractor(path) if has_markup else read_json_rows(path)


def _read_wikiextractor(path: pathlib.Path) -> Iterator[Row]:
    """Yield the documents in a WikiExtractor file, with the HTML entities in the text decoded."""
    with open_decompressed(path) as file:
        lines = _decoded(path, file)
        for number, line in lines:
            if line.strip():
                location = f'{path}:{number}'
                yield Row(location, {**_attributes(location, line), 'text': _text(location, lines)})


def _decoded(path: pathlib.Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        try:
            yield number, line.decode('utf-8-sig' if number == 1 else 'utf-8')
        except UnicodeDecodeError as error:
            raise UserError(f'{path}:{number} is not UTF-8.') from error


def _attributes(location: str, line: str) -> dict[str, str]:
    """Return the attributes of the <doc> tag in a line.

    Raises:
        UserError: The line is not a <doc> tag with an id and a title.
    """
    if line.lstrip().startswith('<mediawiki'):
        raise UserError(f'{location} is a dump of MediaWiki: extract its text with WikiExtractor.')
    match = _DOC_START.fullmatch(line)
    attributes = {
        name: html.unescape(value) for name, value in _ATTRIBUTE.findall(match[1] if match else '')
    }
    if not {'id', 'title'} <= attributes.keys():
        raise UserError(
            f'{location} must begin a document as <doc id="…" url="…" title="…">; it is '
            f'{line.strip()[:60]!r}.'
        )
    return attributes


def _text(location: str, lines: Iterator[tuple[int, str]]) -> str:
    """Read lines to the end of a document, and return its text.

    Raises:
        UserError: The document has no end.
    """
    text: list[str] = []
    for _, line in lines:
        if line.rstrip() == _DOC_END:
            return html.unescape(''.join(text)).strip()
        if _DOC_START.fullmatch(line):
            break
        text.append(line)
    raise UserError(f'{location}: the document that begins here has no {_DOC_END}.')
