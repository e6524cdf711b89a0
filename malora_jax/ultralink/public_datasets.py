"""Rows of public datasets as rows of `conversations`.

`check_first_rows` refuses a file of an unknown format. Later rows that cannot be read are rejected.

Rows are English, unless they are rows of `conversations` already. Chats in another language are
rejected, as `--keep-lang en` of FastChat's cleaning does (fastchat/data/optional_clean.py at
0e6d3e4b). A row without an id gets one from its file and its number, and an id that an earlier row
has gets a suffix.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, conversations, release_export, source_formats
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import ItemOutcome, excerpt
from malora_jax.ultralink.text.language_identification import describe_language, identify_language

_LANGUAGE = 'en'
# Fields of `conversations`. In rows without the first three, fields of the same names may have
# another meaning, such as the name of a language.
_OWN_FIELDS = ('data', 'language', 'subset', 'document', 'source')
# Fields with the number of a row in the dataset, such as those of Magicoder.
_NUMBER_FIELDS = ('index', 'raw_index')
# Fields for the id and the number of a row in its file; the id is '' if the row has none.
_OWN_ID, _NUMBER = '\0id', '\0number'


@dataclasses.dataclass(frozen=True)
class PublicDataset(Settings):
    """Settings that describe a public dataset: facts that its rows may lack."""

    subset: str = setting(
        'Subset of rows of public datasets that do not name one; auto = math for MetaMathQA, code '
        'for Magicoder, chat_agnostic for chats.',
        'auto',
        choices=('auto', *SUBSETS),
    )
    title: str = setting(
        'Title of the public dataset, for the attribution of rows without the field `title`; '
        'default: the name of the file.',
        '',
    )
    url: str = setting(
        'URL of the public dataset, for the attribution of rows without the field `url`.', ''
    )
    license: str = setting(
        'License of the public dataset, for the attribution of rows without the field `license`.',
        '',
    )


def with_unique_ids(rows: Iterable[Row], stem: str, seen: set[str]) -> Iterator[Row]:
    """Yield the rows of a file, each with an id that no earlier row has.

    Args:
        rows: Rows of the file.
        stem: Name of the file without suffixes, for the ids of rows without one.
        seen: Ids of the rows of earlier files; those of this file are added.
    """
    for number, row in enumerate(rows, start=1):
        value = row.fields.get('id')
        own_id = str(value).strip() if isinstance(value, str | int) else ''
        identifier = unique = own_id or f'{stem}-{number}'
        repetitions = 1
        # A suffix such as -2 could make the id of a segment of a document.
        while unique in seen:
            repetitions += 1
            unique = f'{identifier}#{repetitions}'
        seen.add(unique)
        added = {'id': unique, _OWN_ID: own_id, _NUMBER: str(number)}
        yield Row(row.location, {**row.fields, **added})


def check_first_rows(rows: Iterable[Row]) -> None:
    """Check that any of the first rows of a file has a known format.

    Args:
        rows: First rows of a file.

    Raises:
        UserError: There are rows, but none has a known format; or one is a released row.
    """
    unknown: Row | None = None
    for row in rows:
        _check_not_released(row)
        if source_formats.read(row).reason != source_formats.UNKNOWN:
            return
        unknown = unknown or row
    if unknown:
        raise UserError(
            f'{unknown.location} has the fields {source_formats.describe_fields(unknown)}, which '
            'no known format has: rename them to `query` and `response`, or to `messages` (a list '
            'of turns with `role` and `content`).'
        )


def _check_not_released(row: Row) -> None:
    """Check that a row is not one of a release, whose language is only in the name of its file."""
    name = release_export.released_name(str(row.fields.get('id', '')))
    if name and 'data' in row.fields and not _is_own(row):
        raise UserError(
            f'{row.location} has the id {row.fields["id"]!r} of a released row, but the file is '
            f'not {name}: import the folder of the release instead.'
        )


def _is_own(row: Row) -> bool:
    """Return whether a row is one of `conversations`."""
    return {'data', 'language', 'subset'} <= row.fields.keys()


def convert(row: Row, file: str, dataset: PublicDataset) -> ItemOutcome:
    """Return the outcome of a row of `with_unique_ids`: a repaired conversation, or a reject.

    Args:
        row: Row.
        file: Name of its file, for the attribution.
        dataset: Facts on the dataset.

    Raises:
        UserError: The row is a released one, or a row of `conversations` is not valid.
    """
    own_id, identifier = row.fields[_OWN_ID], row.fields['id']
    added = (_OWN_ID, _NUMBER, *([] if own_id else ['id']))
    fields = {name: value for name, value in row.fields.items() if name not in added}
    given = Row(row.location, fields)
    _check_not_released(given)
    found = source_formats.read(given)
    counts = {f'format: {found.format}': 1}
    if found.reason:
        text = excerpt(json.dumps(fields, ensure_ascii=False, default=str))
        return ItemOutcome((), found.reason, counts, detail=found.detail, text=text)
    numbers = (fields[name] for name in _NUMBER_FIELDS if fields.get(name) not in (None, ''))
    values = {
        'id': own_id or str(next(numbers, row.fields[_NUMBER])),
        'title': dataset.title or file,
        'url': dataset.url,
        'license': dataset.license,
    }
    own_fields = _OWN_FIELDS if _is_own(given) else ()
    made = {
        'language': _LANGUAGE,
        'subset': found.subset if dataset.subset == 'auto' else dataset.subset,
        'source': attribution.source_of(given, **values),
        **{name: fields[name] for name in fields if name in own_fields},
        'id': identifier,
        'data': list(found.data),
    }
    conversation = conversations.read(Row(row.location, made))
    text = '\n'.join(conversation.data)
    # The language of mathematics and code cannot be identified as reliably.
    is_checked = not own_fields and conversation.subset == 'chat_agnostic'
    if is_checked and identify_language(text) != _LANGUAGE:
        detail = f'{describe_language(text)}, not {_LANGUAGE}'
        return ItemOutcome((), 'language', counts, detail=detail, text=excerpt(text))
    repairs = list(found.repairs)
    if identifier != own_id:
        repairs.append('id made unique' if own_id else 'id added')
    counts |= source_formats.count_repairs(repairs)
    used = {*found.fields, *own_fields, *_NUMBER_FIELDS, 'id', *attribution.OWN_FIELDS}
    counts |= {
        f'ignored field: {name}': 1
        for name in fields
        if name not in used and source_formats.is_filled(fields[name])
    }
    return ItemOutcome([conversation.row], '', counts)
