"""Stage `export`: conversations as the files of the released dataset, and for the trainer.

The release has 20 files {en|zh|ru|fr|es}_{chat_specific|chat_agnostic|math|code}.jsonl, an object a
line: `id` = {lang}_{subset}_{n}, and `data`, the user's texts and the assistant's in turn. A
document stands in the first of them, after a sentence in the language, within <document> tags.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import tqdm

from malora_jax.errors import UserError
from malora_jax.export.directory import new_directory
from malora_jax.ultralink import conversations, shards
from malora_jax.ultralink.conversations import SUBSETS, Conversation
from malora_jax.ultralink.languages import LANGUAGES

NAMES = tuple(f'{language}_{subset}.jsonl' for language in LANGUAGES for subset in SUBSETS)
# For the trainer, a file for each language: the languages are tasks.
TRAINING = 'training'
_DOCUMENT = re.compile(r'\A.*?<document>.*</document>\s*', re.DOTALL)
_ID = re.compile(rf'({"|".join(LANGUAGES)})_({"|".join(SUBSETS)})_(\d+)')


def export(inputs: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, int]:
    """Writes the released files, and those for the trainer in a folder beside them.

    training/LANGUAGE.jsonl has the rows of all files of a language, which a task of chats reads
    (`data.turns_field`).

    Args:
        inputs: rows as in `conversations`, written in their order.
        output: directory that is not there yet, or empty.

    Returns:
        The number of rows of each released file, by its name.

    Raises:
        UserError: the directory is not empty, a row is no conversation, or there is none.
    """
    counts: dict[str, int] = {}
    with new_directory(output) as scratch, contextlib.ExitStack() as stack:
        (scratch / TRAINING).mkdir()
        opened: dict[str, TextIO] = {}

        def write(name: str, fields: Mapping[str, Any]) -> None:
            if name not in opened:
                opened[name] = stack.enter_context((scratch / name).open('w', encoding='utf-8'))
            opened[name].write(json.dumps(fields, ensure_ascii=False) + '\n')

        for row in tqdm.tqdm(
            shards.read(inputs), 'export', shards.count(inputs), unit=' rows', delay=1.0
        ):
            conversation = conversations.read(row)
            name = f'{conversation.language}_{conversation.subset}.jsonl'
            released = released_row(conversation, counts.get(name, 0))
            write(name, released)
            write(f'{TRAINING}/{conversation.language}.jsonl', released)
            counts[name] = counts.get(name, 0) + 1
        if not counts:
            raise UserError(f'{", ".join(map(str, inputs))}: there are no rows to export.')
    return counts


def released_row(conversation: Conversation, number: int) -> dict[str, Any]:
    """A conversation as the released files have it.

    Args:
        conversation: with its document, if it is about one.
        number: of the row in its file.
    """
    first, *rest = conversation.data
    if conversation.document:
        lead_in = LANGUAGES[conversation.language].lead_in
        first = f'{lead_in}\n<document>\n{conversation.document}\n</document>\n{first}'
    return {
        'id': f'{conversation.language}_{conversation.subset}_{number}',
        'data': [first, *rest],
    }


def without_document(question: str) -> str:
    """A first question without what precedes its own words."""
    return _DOCUMENT.sub('', question, count=1)


def split_id(identifier: str) -> tuple[str, str, int] | None:
    """Language, subset and number in the id of a released row, or None if that is no such id."""
    found = _ID.fullmatch(identifier)
    return (found[1], found[2], int(found[3])) if found else None
