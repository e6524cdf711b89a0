"""Attribution of conversations: the article, or the row of a dataset, of which each one is made.

Rows of all stages have it in the field `source`, an object with `id`, `title`, `url` and `license`,
as far as they are known. The rows of a release have no place for it. There, the file
attribution/LANGUAGE_SUBSET.sources.jsonl has a line for each row of LANGUAGE_SUBSET.jsonl, in the
same order: {"id", "conversation", "source"}, where `id` is that of the released row, and
`conversation` the id that the row had before.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import shards

FOLDER = 'attribution'
# Fields of a document, or of a row of a public dataset, that its source has.
OWN_FIELDS = ('title', 'url', 'license')
_SUFFIX = '.sources.jsonl'
_WIKIPEDIA, _WIKIPEDIA_LICENSE = '.wikipedia.org/', 'CC BY-SA 4.0'


def source_of(row: Row, **values: Any) -> dict[str, str]:
    """Return the source of a row that is read from a document or from a public dataset.

    Args:
        row: Row, whose fields `OWN_FIELDS` are used if they are strings.
        **values: Values of fields that the row lacks; '' = unknown.
    """
    own = {name: row.fields.get(name) for name in OWN_FIELDS}
    source = {**values, **{name: text for name, text in own.items() if isinstance(text, str)}}
    if _WIKIPEDIA in source.get('url', ''):
        source['license'] = source.get('license') or _WIKIPEDIA_LICENSE
    return {name: source[name] for name in ('id', *OWN_FIELDS) if source.get(name)}


def read_source(row: Row) -> dict[str, str]:
    """Return the field `source` of a row; {} if it has none.

    Raises:
        UserError: The field is not an object of strings.
    """
    source = row.fields.get('source')
    if source is None:
        return {}
    if not isinstance(source, dict) or not all(isinstance(each, str) for each in source.values()):
        raise UserError(f"{row.location}: 'source' must be an object of strings.")
    return source


def path_of(released: pathlib.Path) -> pathlib.Path:
    """Return the path of the attribution of a released file."""
    return released.parent / FOLDER / f'{released.stem}{_SUFFIX}'


def is_attribution(path: pathlib.Path) -> bool:
    """Return whether a file is the attribution of a released file."""
    return path.parent.name == FOLDER and path.name.endswith(_SUFFIX)


def read_sources(released: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the id and the source of each row of a released file; nothing if they are not recorded.

    Raises:
        UserError: The attribution of the file is broken.
    """
    path = path_of(released)
    if path.is_file():
        for row in shards.read_json_rows(path):
            yield shards.text_field(row, 'id'), read_source(row)
