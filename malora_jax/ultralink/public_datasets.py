"""Rows of public datasets as rows of `conversations`.

Rows are English, unless they are rows of `conversations` already. Chats in another language are
rejected, as `--keep-lang en` of FastChat's cleaning does (fastchat/data/optional_clean.py at
0e6d3e4b). A row without an id gets one from its file and its number, and an id that an earlier row
has gets a suffix.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator

from malora_jax.data.file_rows import Row
from malora_jax.ultralink import attribution, conversations, source_formats
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import ItemOutcome, excerpt
from malora_jax.ultralink.text.language_identification import describe_language, identify_language

_LANGUAGE = 'en'
# Fields of `conversations`. In rows without the first three, fields of the same names may have
# another meaning, such as the name of a language.
_OWN_FIELDS = ('data', 'language', 'subset', 'document', 'source')
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


def convert(row: Row, file: str, dataset: PublicDataset) -> ItemOutcome:
    """Return the outcome of a row of `with_unique_ids`: a repaired conversation, or a reject.

    Args:
        row: Row.
        file: Name of its file, for the attribution.
        dataset: Facts on the dataset.

    Raises:
        UserError: The format is unknown, or a row of `conversations` is not valid.
    """
    own_id, identifier = row.fields[_OWN_ID], row.fields['id']
    added = (_OWN_ID, _NUMBER, *([] if own_id else ['id']))
    given = {name: value for name, value in row.fields.items() if name not in added}
    found = source_formats.read(Row(row.location, given))
    counts = {f'format: {found.format}': 1}
    if found.reason:
        text = excerpt(json.dumps(given, ensure_ascii=False, default=str))
        return ItemOutcome((), found.reason, counts, detail=found.detail, text=text)
    is_own = {*_OWN_FIELDS[:3]} <= given.keys()
    values = {
        'id': own_id or row.fields[_NUMBER],
        'title': file,
        'url': dataset.url,
        'license': dataset.license,
    }
    fields = {
        'language': _LANGUAGE,
        'subset': found.subset if dataset.subset == 'auto' else dataset.subset,
        'source': attribution.source_of(row, **values),
        **({name: given[name] for name in given if name in _OWN_FIELDS} if is_own else {}),
        'id': identifier,
        'data': list(found.data),
    }
    conversation = conversations.read(Row(row.location, fields))
    text = '\n'.join(conversation.data)
    # The language of mathematics and code cannot be identified as reliably.
    is_checked = not is_own and conversation.subset == 'chat_agnostic'
    if is_checked and identify_language(text) != _LANGUAGE:
        detail = f'{describe_language(text)}, not {_LANGUAGE}'
        return ItemOutcome((), 'language', counts, detail=detail, text=excerpt(text))
    repairs = list(found.repairs)
    if identifier != own_id:
        repairs.append('id made unique' if own_id else 'id added')
    counts |= source_formats.count_repairs(repairs)
    return ItemOutcome([conversation.row], '', counts)
