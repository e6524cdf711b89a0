"""Answers that are there already, in a SQLite file: what is finished is never asked again.

A row is committed before its answer is used. With a write-ahead log a kill loses no row, and a
power cut at most the last ones; it breaks nothing.
"""

import asyncio
import contextlib
import hashlib
import pathlib
import sqlite3
from collections.abc import Iterator

from malora_jax.errors import UserError
from malora_jax.ultralink.llm.chat import Model, Reply, Request

# Of another process that writes to the same file.
_PATIENCE_S = 60.0
_TABLE = (
    'CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, '
    'finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID'
)


class Cache:
    """Replies by a hash of model and request."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def get(self, key: bytes) -> Reply | None:
        """The reply, or None."""
        query = 'SELECT text, finish_reason, tokens FROM replies WHERE key = ?'
        row = self._connection.execute(query, (key,)).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: bytes, reply: Reply) -> None:
        """Keeps a reply; one that is there already stays."""
        query = 'INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)'
        self._connection.execute(query, (key, *reply))

    @property
    def tokens(self) -> int:
        """Of all replies together: what has been spent."""
        query = 'SELECT COALESCE(SUM(tokens), 0) FROM replies'
        return self._connection.execute(query).fetchone()[0]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Cache]:
    """A cache in a file, which is made if it is not there.

    Raises:
        UserError: the file is none of SQLite's or damaged, or cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Each statement is a transaction of its own.
        with contextlib.closing(
            sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
        ) as connection:
            connection.execute('PRAGMA journal_mode = WAL')
            connection.execute('PRAGMA synchronous = NORMAL')
            connection.execute(_TABLE)
            yield Cache(connection)
    except sqlite3.Error as error:
        raise UserError(
            f'{path} does not serve as a cache of answers ({error}): choose another --cache.'
        ) from error


class Cached:
    """A model whose replies are kept.

    Attributes:
        name: of the model.
    """

    def __init__(self, model: Model, cache: Cache):
        self.name = model.name
        self._model = model
        self._cache = cache
        self._asked: dict[bytes, asyncio.Task[Reply]] = {}

    async def complete(self, request: Request) -> Reply:
        """See `Model`; a request that is being answered already is not asked twice."""
        key = hashlib.sha256(self.name.encode() + b'\0' + request.digest).digest()
        found = self._cache.get(key)
        if found is not None:
            return found
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._ask(key, request))
        return await self._asked[key]

    async def _ask(self, key: bytes, request: Request) -> Reply:
        try:
            reply = await self._model.complete(request)
            self._cache.put(key, reply)
            return reply
        finally:
            del self._asked[key]
