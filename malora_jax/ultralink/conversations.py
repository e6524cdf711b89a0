"""Rows that hold a conversation: what all stages after the dialogues read and write.

{"id", "language", "subset", "data"}, and in the subset chat_specific also "document": `data`
alternates the user's texts and the assistant's. A row of the stage `dialogues` has no subset, and
is chat_specific.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from malora_jax.data.rows import Row, is_utf_8
from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.shards import text_field

SPECIFIC = 'chat_specific'
SUBSETS = (SPECIFIC, 'chat_agnostic', 'math', 'code')


class Conversation(NamedTuple):
    """A conversation.

    Attributes:
        id: of its row.
        language: its code.
        subset: one of `SUBSETS`.
        data: the user's texts and the assistant's, in turn.
        document: that it is about; '' for none.
    """

    id: str
    language: str
    subset: str
    data: list[str]
    document: str = ''

    @property
    def row(self) -> dict[str, Any]:
        """As a row."""
        fields = self._asdict()
        if not self.document:
            del fields['document']
        return fields


def read(row: Row) -> Conversation:
    """The conversation of a row.

    Raises:
        UserError: a field is missing or cannot be, with the row's place.
    """
    identifier, language = text_field(row, 'id'), text_field(row, 'language')
    if language not in LANGUAGES:
        raise UserError(f'{row.place}: {unknown_name("language", language, LANGUAGES)}')
    document = text_field(row, 'document') if 'document' in row.fields else ''
    subset = text_field(row, 'subset') if 'subset' in row.fields or not document else SPECIFIC
    if subset not in SUBSETS:
        raise UserError(f'{row.place}: {unknown_name("subset", subset, SUBSETS)}')
    return Conversation(identifier, language, subset, texts(row), document)


def texts(row: Row) -> list[str]:
    """The field `data` of a row.

    Raises:
        UserError: it is missing or cannot be, with the row's place.
    """
    fault = data_fault(row.fields)
    if fault:
        raise UserError(f'{row.place}: {fault}.')
    return list(row.fields['data'])


def data_fault(fields: Mapping[str, Any]) -> str:
    """What is wrong with the field `data` of a row; '' = nothing."""
    data = fields.get('data')
    if not isinstance(data, list) or not data:
        return "'data' must be a list of texts, the user's and the assistant's in turn"
    if len(data) % 2:
        return f"'data' has an odd number of texts ({len(data)}); each question needs an answer"
    for number, text in enumerate(data, 1):
        if not isinstance(text, str) or not text.strip():
            return f"text {number} of 'data' is {'empty' if isinstance(text, str) else 'no text'}"
        if not is_utf_8(text):
            return f"text {number} of 'data' holds a half of a character"
    return ''
