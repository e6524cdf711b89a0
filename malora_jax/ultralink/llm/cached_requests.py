"""Requests of cached replies: the item, the stage, the model and the messages of each reply.

They are only for inspection. A reply is found by its key alone, so that caches of earlier versions,
which have no requests, stay valid. Each text is stored once, because the requests of a dialogue
repeat its document.
"""

import contextvars
import hashlib
import json
import sqlite3
from typing import NamedTuple

from malora_jax.ultralink.llm.chat import ChatMessage, ModelRequest, Reply

# Id of the item that the current task processes. Requests do not contain it, because requests that
# are equal have the same reply, and because the cache keys must not change.
current_item: contextvars.ContextVar[str] = contextvars.ContextVar('current_item', default='')

_TABLES = (
    'CREATE TABLE IF NOT EXISTS requests (key BLOB PRIMARY KEY NOT NULL, model TEXT NOT NULL, '
    'stage TEXT NOT NULL, item TEXT NOT NULL, sample_index INTEGER NOT NULL, '
    'messages TEXT NOT NULL)',
    'CREATE INDEX IF NOT EXISTS requests_by_item ON requests (item)',
    'CREATE TABLE IF NOT EXISTS texts (digest TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL)',
)


class CachedRequest(NamedTuple):
    """A request with its cached reply.

    Attributes:
        model: Name of the model.
        stage: Name of the stage that made the request.
        item: Id of the item that the stage processed. If several items made the same request, it
            is the first one.
        sample_index: Index of the reply among several replies to the same messages, from 0.
        messages: Messages of the request.
        reply: Cached reply.
    """

    model: str
    stage: str
    item: str
    sample_index: int
    messages: tuple[ChatMessage, ...]
    reply: Reply


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of requests in a cache, unless they exist."""
    for statement in _TABLES:
        connection.execute(statement)


def store(connection: sqlite3.Connection, key: bytes, model: str, request: ModelRequest) -> None:
    """Store a request of the current item.

    Args:
        connection: Cache, with the tables of requests.
        key: Key of the reply.
        model: Name of the model.
        request: Request to store, unless there is one with the same key.
    """
    for _, text in request.messages:
        connection.execute('INSERT OR IGNORE INTO texts VALUES (?, ?)', (_digest(text), text))
    query = 'INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?)'
    connection.execute(query, (key, *_row(model, request)))


def has_messages(connection: sqlite3.Connection, model: str, request: ModelRequest) -> bool:
    """Return whether a request of the current item with the same messages was stored.

    Its key may differ, because of another endpoint or other sampling settings.

    Args:
        connection: Cache, with the tables of requests.
        model: Name of the model.
        request: Request to look for.
    """
    query = (
        'SELECT 1 FROM requests WHERE model = ? AND stage = ? AND item = ? AND sample_index = ? '
        'AND messages = ?'
    )
    return connection.execute(query, _row(model, request)).fetchone() is not None


def read(connection: sqlite3.Connection, item: str = '', last: int = 0) -> list[CachedRequest]:
    """Return requests with their replies, oldest first.

    Args:
        connection: Cache, with the tables of requests.
        item: Id of the item of all requests; '' = requests of any item.
        last: Maximum number of requests, the latest ones; 0 = no limit.
    """
    condition, values = ('WHERE item = ?', (item,)) if item else ('', ())
    query = (
        'SELECT requests.model, stage, item, sample_index, messages, text, finish_reason, tokens '
        f'FROM requests JOIN replies USING (key) {condition} ORDER BY requests.rowid DESC LIMIT ?'
    )
    rows = connection.execute(query, (*values, last or -1)).fetchall()
    return [
        CachedRequest(
            model, stage, item, sample_index, _messages(connection, messages), Reply(*reply)
        )
        for model, stage, item, sample_index, messages, *reply in reversed(rows)
    ]


def count_replies(connection: sqlite3.Connection) -> list[tuple[str, str, str, int, int]]:
    """Return model, stage, finish reason, number of replies, and number of tokens of each group.

    The model and the stage of a reply that an earlier version has stored are '?'.
    """
    query = (
        "SELECT COALESCE(requests.model, '?'), COALESCE(stage, '?'), finish_reason, COUNT(*), "
        'SUM(tokens) FROM replies LEFT JOIN requests USING (key) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3'
    )
    return connection.execute(query).fetchall()


def _row(model: str, request: ModelRequest) -> tuple[str, str, str, int, str]:
    """Return all columns of a request of the current item, except for the key."""
    messages = json.dumps([(role, _digest(text)) for role, text in request.messages])
    return model, request.stage, current_item.get(), request.sample_index, messages


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _messages(connection: sqlite3.Connection, stored: str) -> tuple[ChatMessage, ...]:
    query = 'SELECT text FROM texts WHERE digest = ?'
    return tuple(
        ChatMessage(role, connection.execute(query, (digest,)).fetchone()[0])
        for role, digest in json.loads(stored)
    )
