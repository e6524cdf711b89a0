"""Formats of public datasets: recognition by their fields, and repair of their conversations.

| format | fields | default subset |
|---|---|---|
| ShareGPT | `conversations`: turns with `from` and `value` | chat_agnostic |
| OpenChat | `items`: turns as in ShareGPT or `messages`; may have `system` | chat_agnostic |
| messages | `messages`: turns with `role` and `content` | chat_agnostic |
| UltraChat | `data`: texts of the user and the assistant in turn | chat_agnostic |
| MetaMathQA | `query`, `response` | math |
| Magicoder OSS-Instruct | `problem`, `solution` | code |
| Magicoder Evol-Instruct | `instruction`, `response` | code |

Repairs, in this order:

1. Answers before the first question are removed, the conversation ends before its first empty
   message, and a last question without an answer is removed. FastChat's cleaning does the same
   (lm-sys/FastChat at 0e6d3e4b, fastchat/data/clean_sharegpt.py).
2. Consecutive messages of a speaker are joined with a blank line, as Mistral does before it
   tokenizes a chat (mistralai/mistral-common, protocol/instruct/normalize.py, `_DEFAULT_JOIN_STR`).
   FastChat drops such conversations.
3. System messages are put before the first question, with a blank line between, because released
   rows have no place of their own for them. Mistral and Llama 2 have them there, too.

The content of a message may be a list of parts, as in OpenAI's chat format. Parts with text are
joined with a blank line.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from malora_jax.data.file_rows import Row
from malora_jax.ultralink.conversations import SUBSETS, data_fault

_CHAT, _MATH, _CODE = SUBSETS[1:]
_TURN_FORMATS = {'conversations': 'ShareGPT', 'items': 'OpenChat', 'messages': 'messages'}
_PAIR_FORMATS = {
    ('query', 'response'): ('MetaMathQA', _MATH),
    ('problem', 'solution'): ('Magicoder OSS-Instruct', _CODE),
    ('instruction', 'response'): ('Magicoder Evol-Instruct', _CODE),
}
# Fields that belong to the question of a pair, such as `context` of Dolly and `input` of Alpaca.
_QUESTION_PARTS = (
    *('context', 'input', 'inputs', 'passage', 'document', 'background'),
    *('history', 'system', 'system_prompt'),
)
# Names of the speaker and of the text of a turn.
_TURN_FIELDS = (('from', 'value'), ('role', 'content'))
_SYSTEM, _USER, _ASSISTANT = 'system', 'user', 'assistant'
_ROLES = {
    'system': _SYSTEM,
    **dict.fromkeys(('human', 'user', 'prompter'), _USER),
    **dict.fromkeys(('gpt', 'assistant', 'chatgpt', 'bing', 'bard', 'model'), _ASSISTANT),
}
# Reasons why a conversation cannot be repaired.
MALFORMED, NO_TURN, SPEAKER = 'malformed turns', 'no question with an answer', 'unknown speaker'
PART, LOST_FIELD, UNKNOWN = 'part without text', 'field would be lost', 'unknown format'

# Repair that may leave no message.
_CUT = 'cut before an empty message'

# A speaker and a text.
_Message = tuple[str, Any]


class ReadConversation(NamedTuple):
    """A conversation of a public dataset after its repair.

    Attributes:
        format: Name of the format.
        subset: Default subset of the format.
        data: Messages, which alternate between user and assistant; empty if it cannot be repaired.
        repairs: Kinds of repairs that were made.
        reason: Why the conversation cannot be repaired; '' if it could.
        detail: Explanation of the reason.
        fields: Names of the fields that the format has.
    """

    format: str
    subset: str
    data: Sequence[str] = ()
    repairs: Sequence[str] = ()
    reason: str = ''
    detail: str = ''
    fields: Sequence[str] = ()


def read(row: Row) -> ReadConversation:
    """Return the conversation in a row of any known format, repaired if necessary.

    A row with the fields of no format has the reason `UNKNOWN`.
    """
    fields = row.fields
    if 'data' in fields:
        return _read_texts(fields['data'])._replace(fields=['data'])
    for field, name in _TURN_FORMATS.items():
        if field in fields:
            return _read_turns(name, field, fields)._replace(fields=[field, 'system'])
    for (question, answer), (name, subset) in _PAIR_FORMATS.items():
        if question in fields and answer in fields:
            found = _read_pair(name, subset, question, answer, fields)
            return found._replace(fields=[question, answer])
    lacking = [f'lacks {answer}' for question, answer in _PAIR_FORMATS if question in fields]
    detail = lacking[0] if lacking else f'has the fields {describe_fields(row)}'
    return ReadConversation('unknown', _CHAT, (), (), UNKNOWN, detail)


def describe_fields(row: Row) -> str:
    """Return the names of a row's fields as text."""
    return ', '.join(sorted(row.fields)) or 'of an empty object'


def _read_texts(texts: Any) -> ReadConversation:
    """Return the conversation of an UltraChat row."""
    name = 'UltraChat'
    if not isinstance(texts, list):
        return ReadConversation(name, _CHAT, (), (), MALFORMED, "'data' must be a list")
    speakers = (_USER, _ASSISTANT) * (len(texts) // 2 + 1)
    return _repaired(name, _CHAT, list(zip(speakers, texts, strict=False)))


def _read_turns(name: str, field: str, fields: Mapping[str, Any]) -> ReadConversation:
    """Return the conversation in a field that is a list of turns."""
    try:
        messages = [_message(turn) for turn in fields[field]]
    except (TypeError, LookupError):
        detail = f"'{field}' must be a list of turns with 'from' and 'value'"
        if field != 'conversations':
            detail += " or with 'role' and 'content'"
        return ReadConversation(name, _CHAT, (), (), MALFORMED, detail)
    system = [(_SYSTEM, fields['system'])] if fields.get('system') else []
    return _repaired(name, _CHAT, system + messages)


def _read_pair(
    name: str, subset: str, question: str, answer: str, fields: Mapping[str, Any]
) -> ReadConversation:
    """Return the conversation of a row with a question and an answer."""
    lost = next((part for part in _QUESTION_PARTS if is_filled(fields.get(part))), '')
    if lost:
        detail = f"'{lost}' is not empty: add it to '{question}', and remove it"
        return ReadConversation(name, subset, (), (), LOST_FIELD, detail)
    return _repaired(name, subset, [(_USER, fields[question]), (_ASSISTANT, fields[answer])])


def is_filled(value: Any) -> bool:
    """Return whether the value of a field is neither missing nor empty."""
    return bool(value.strip() if isinstance(value, str) else value)


def count_repairs(repairs: Sequence[str]) -> dict[str, int]:
    """Return the counts of an item's repairs for the manifest."""
    return {f'repair: {kind}': 1 for kind in repairs}


def _message(turn: Any) -> _Message:
    """Return the speaker and the text of a turn.

    Raises:
        TypeError, LookupError: The turn has neither pair of fields.
    """
    speaker, text = next((names for names in _TURN_FIELDS if names[0] in turn), _TURN_FIELDS[0])
    return str(turn[speaker]).lower(), turn[text]


def _parts(content: Any) -> list[Mapping[str, Any]]:
    """Return the parts of a message; [] if it does not consist of parts."""
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    return content if is_parts else []


def _has_text(part: Mapping[str, Any]) -> bool:
    return part.get('type') == 'text' and isinstance(part.get('text'), str)


def _text(content: Any) -> Any:
    """Return the content of a message, with its parts joined if it consists of parts."""
    parts = _parts(content)
    return '\n\n'.join(part['text'] for part in parts) if parts else content


def _repaired(name: str, subset: str, messages: Sequence[_Message]) -> ReadConversation:
    """Return the conversation that consists of messages, after all repairs."""

    def rejected(reason: str, detail: str) -> ReadConversation:
        return ReadConversation(name, subset, (), (), reason, detail)

    unknown = [speaker for speaker, _ in messages if speaker not in _ROLES]
    if unknown:
        return rejected(SPEAKER, f'{unknown[0]!r}')
    other = [part for _, text in messages for part in _parts(text) if not _has_text(part)]
    if other:
        return rejected(PART, f'type {other[0].get("type")!r}')
    texts = [_text(text) for _, text in messages]
    if not all(isinstance(text, str) or text is None for text in texts):
        return rejected(MALFORMED, 'a message is not a string')
    of_roles = [
        (_ROLES[speaker], text or '') for (speaker, _), text in zip(messages, texts, strict=True)
    ]
    system = [text for role, text in of_roles if role == _SYSTEM and text.strip()]
    chat = [message for message in of_roles if message[0] != _SYSTEM]
    has_joined_parts = any(len(_parts(text)) > 1 for _, text in messages)
    repairs = ['parts of a message joined'] if has_joined_parts else []
    for repair, make in _REPAIRS.items():
        repaired = make(chat)
        if repaired != chat:
            repairs.append(repair)
        chat = repaired
    if not chat:
        speakers = ', '.join(speaker for speaker, _ in messages)
        detail = f'speakers: {speakers}' if speakers else 'no messages'
        return rejected(NO_TURN, f'{detail}; a message is empty' if _CUT in repairs else detail)
    data = [text for _, text in chat]
    if system:
        repairs.append('system message put before the first question')
        data[0] = '\n\n'.join([*system, data[0]])
    fault = data_fault({'data': data})
    return rejected(MALFORMED, fault) if fault else ReadConversation(name, subset, data, repairs)


def _until_empty(chat: list[_Message]) -> list[_Message]:
    end = next((n for n, (_, text) in enumerate(chat) if not text.strip()), len(chat))
    return chat[:end]


def _from_question(chat: list[_Message]) -> list[_Message]:
    start = next((n for n, (role, _) in enumerate(chat) if role == _USER), len(chat))
    return chat[start:]


def _to_answer(chat: list[_Message]) -> list[_Message]:
    end = next((n for n, (role, _) in enumerate(reversed(chat)) if role == _ASSISTANT), len(chat))
    return chat[: len(chat) - end]


def _joined(chat: list[_Message]) -> list[_Message]:
    texts: list[tuple[str, list[str]]] = []
    for role, text in chat:
        if not texts or texts[-1][0] != role:
            texts.append((role, []))
        texts[-1][1].append(text)
    return [(role, '\n\n'.join(parts)) for role, parts in texts]


# Function that makes a repair, by its name in the counts of the stage.
_REPAIRS = {
    'answers before the first question removed': _from_question,
    _CUT: _until_empty,
    'last question without an answer removed': _to_answer,
    'consecutive messages of a speaker joined': _joined,
}
