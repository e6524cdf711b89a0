"""Command `export`: write conversations as the files of the released dataset, and for training.

Next to the released files, attribution/ names the source of each row (see `attribution`), and
README.md is a data card.

The release has 20 files {en|zh|ru|fr|es}_{chat_specific|chat_agnostic|math|code}.jsonl, with one
object per line: `id` = {lang}_{subset}_{n}, and `data`, which alternates user and assistant
messages. In a dialogue about a document, the first message starts with an instruction in the
language of the dialogue, followed by the document in <document> tags.
"""

import collections
import contextlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from malora_jax.errors import UserError
from malora_jax.export.directory import atomic_directory
from malora_jax.progress import track
from malora_jax.ultralink import (
    attribution,
    conversations,
    data_card,
    paper_statistics,
    shards,
)
from malora_jax.ultralink.conversations import SUBSETS, Conversation
from malora_jax.ultralink.languages import LANGUAGES

# The files of the released dataset. A release of other languages has files of the same form.
FILE_NAMES = tuple(
    f'{language}_{subset}.jsonl' for language in paper_statistics.LANGUAGES for subset in SUBSETS
)
# Subfolder of the training files. Each language has its own file, because it is a task in training.
TRAINING_FOLDER = 'training'
_DOCUMENT = re.compile(r'\A.*?<document>.*</document>\s*', re.DOTALL)
_ID = re.compile(rf'([a-z]+)_({"|".join(SUBSETS)})_(\d+)')


def export(inputs: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, int]:
    """Write conversations as released files, and as training files in a subfolder.

    training/LANGUAGE.jsonl has the rows of all files of a language. To train on these files, set
    the config field `data.turns_field` to 'data'.

    Args:
        inputs: Files or directories with rows of `conversations`; the order of rows is kept.
        output: Output directory that does not exist yet, or is empty.

    Returns:
        Number of rows of each released file, by file name.

    Raises:
        UserError: The directory is not empty, an input is missing or broken, a row is not a
            conversation, or there are no rows.
    """
    counts: dict[str, int] = {}
    licenses: dict[str, collections.Counter[str]] = {}
    with atomic_directory(output) as scratch, contextlib.ExitStack() as stack:
        for folder in (TRAINING_FOLDER, attribution.FOLDER):
            (scratch / folder).mkdir()
        open_files: dict[str, TextIO] = {}

        def write(name: str, fields: Mapping[str, Any]) -> None:
            if name not in open_files:
                open_files[name] = stack.enter_context((scratch / name).open('w', encoding='utf-8'))
            open_files[name].write(json.dumps(fields, ensure_ascii=False) + '\n')

        for row in track(shards.read(inputs), 'export', 'row', shards.count_rows(inputs)):
            conversation = conversations.read(row)
            name = f'{conversation.language}_{conversation.subset}.jsonl'
            released_fields = released_row(conversation, counts.get(name, 0))
            write(name, released_fields)
            write(f'{TRAINING_FOLDER}/{conversation.language}.jsonl', released_fields)
            source = {'conversation': conversation.id, 'source': conversation.source}
            sources_path = attribution.path_of(pathlib.Path(name))
            write(str(sources_path), {'id': released_fields['id'], **source})
            counts[name] = counts.get(name, 0) + 1
            license_ = conversation.source.get('license', '')
            licenses.setdefault(name, collections.Counter())[license_] += 1
        if not counts:
            raise UserError(f'{", ".join(map(str, inputs))}: there are no rows to export.')
        (scratch / data_card.NAME).write_text(data_card.text(licenses), 'utf-8')
    return counts


def released_row(conversation: Conversation, number: int) -> dict[str, Any]:
    """Return a conversation as a row of the released files.

    Args:
        conversation: Conversation, with its document if it is about one.
        number: Number of the row in its file, from 0.
    """
    first, *rest = conversation.data
    if conversation.document:
        lead_in = LANGUAGES[conversation.language].lead_in
        first = f'{lead_in}\n<document>\n{conversation.document}\n</document>\n{first}'
    return {
        'id': f'{conversation.language}_{conversation.subset}_{number}',
        'data': [first, *rest],
    }


def file_names() -> list[str]:
    """Return the names of the files of a release of all languages of this process."""
    return [f'{language}_{subset}.jsonl' for language in LANGUAGES for subset in SUBSETS]


def without_document(question: str) -> str:
    """Return the first message of a released dialogue without its document and lead-in sentence."""
    return _DOCUMENT.sub('', question, count=1)


def split_id(identifier: str) -> tuple[str, str, int] | None:
    """Split the id of a released row into language, subset and number; None for any other id."""
    match = _ID.fullmatch(identifier)
    return (match[1], match[2], int(match[3])) if match and match[1] in LANGUAGES else None


def released_name(identifier: str) -> str:
    """Return the name of the file that has a released row, of any language; '' for other ids."""
    match = _ID.fullmatch(identifier)
    return f'{match[1]}_{match[2]}.jsonl' if match else ''
