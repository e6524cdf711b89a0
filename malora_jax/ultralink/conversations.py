"""Rows with conversations, the format of all stages after `dialogues`.

A row is {"id", "language", "subset", "data"}; `data` alternates user and assistant messages. In the
subset chat_specific, a row may also have "document", the text that the conversation is about. A row
of the stage `dialogues` has a document but no subset, and belongs to chat_specific. "source" is the
article or the row of a dataset that the conversation was made of (see `attribution`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from malora_jax.data.file_rows import Row, is_utf_8
from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink.attribution import read_source
from malora_jax.ultralink.languages import LANGUAGES, unknown_language
from malora_jax.ultralink.shards import text_field

# Subsets of the dataset: chat that is generated in each language from documents in it, and three
# kinds of English conversations that are translated.
CHAT_SPECIFIC = 'chat_specific'
SUBSETS = (CHAT_SPECIFIC, 'chat_agnostic', 'math', 'code')
_REQUIRED = ('id', 'language', 'subset', 'data')


class Conversation(NamedTuple):
    """A conversation between a user and an assistant.

    Attributes:
        id: Id of the row.
        language: Language code.
        subset: One of `SUBSETS`.
        data: Messages, which alternate between user and assistant.
        document: Document that the conversation is about; '' = none.
        source: Article or row that the conversation was made of; {} = unknown.
    """

    id: str
    language: str
    subset: str
    data: list[str]
    document: str = ''
    source: Mapping[str, str] = {}

    @property
    def row(self) -> dict[str, Any]:
        """Fields of the conversation as a JSON row."""
        fields = self._asdict()
        return {name: value for name, value in fields.items() if value or name in _REQUIRED}


def read(row: Row) -> Conversation:
    """Return the conversation in a row.

    Raises:
        UserError: A field is missing or not valid; the message names the place of the row.
    """
    identifier, language = _required(row, 'id'), _required(row, 'language')
    if language not in LANGUAGES:
        raise UserError(f'{row.location}: {unknown_language(language, "--language-files")}')
    document = text_field(row, 'document') if 'document' in row.fields else ''
    subset = text_field(row, 'subset') if 'subset' in row.fields or not document else CHAT_SPECIFIC
    if subset not in SUBSETS:
        raise UserError(f'{row.location}: {unknown_name("subset", subset, SUBSETS)}')
    return Conversation(identifier, language, subset, messages(row), document, read_source(row))


def _required(row: Row, name: str) -> str:
    if row.fields.get(name) is None:
        raise UserError(
            f'{row.location} has no {name!r}: if the rows are those of a public dataset, run '
            '`import` first, and give its output as --input.'
        )
    return text_field(row, name)


def messages(row: Row) -> list[str]:
    """Return the messages in the field `data` of a row.

    Raises:
        UserError: The field is missing or not valid; the message names the place of the row.
    """
    fault = data_fault(row.fields)
    if fault:
        raise UserError(f'{row.location}: {fault}.')
    return list(row.fields['data'])


def data_fault(fields: Mapping[str, Any]) -> str:
    """Return a description of the fault in the field `data`; '' if the field is valid."""
    data = fields.get('data')
    if not isinstance(data, list) or not data:
        return (
            "'data' must be a non-empty list of messages that alternate between user and assistant"
        )
    if len(data) % 2:
        return f"'data' has an odd number of messages ({len(data)}); each question needs an answer"
    for number, text in enumerate(data, 1):
        if not isinstance(text, str) or not text.strip():
            return (
                f"message {number} of 'data' is "
                f'{"empty" if isinstance(text, str) else "not a string"}'
            )
        if not is_utf_8(text):
            return (
                f"message {number} of 'data' contains an unpaired surrogate, which is not valid "
                'Unicode text'
            )
    return ''
