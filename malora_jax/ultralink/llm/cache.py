"""Answers that are there already, in a SQLite file: what is finished is never asked again.

A row is committed before its answer is used. With a write-ahead log a kill loses no row, and a
power cut at most the last ones; it breaks nothing.
"""

import asyncio
import contextlib
import hashlib
import os
import pathlib
import sqlite3
from collections.abc import Iterator

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.ultralink.llm.chat import Model, Reply, Request

# Of another process that writes to the same file.
_PATIENCE_S = 60.0
_TABLE = (
    'CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, '
    'finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID'
)


class Cache:
    """Replies by a hash of model and request.

    The file is made with the first reply: a command that is refused before that leaves none.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._connection: sqlite3.Connection | None = None
        if path.exists():
            files.check_regular(path)
            self._connect()
        else:
            _check_writable(path)

    def close(self) -> None:
        """Closes the file."""
        if self._connection:
            self._connection.close()

    def get(self, key: bytes) -> Reply | None:
        """The reply, or None."""
        query = 'SELECT text, finish_reason, tokens FROM replies WHERE key = ?'
        if not self._connection and not self._path.exists():  # Another process may have made it.
            return None
        row = self._connect().execute(query, (key,)).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: bytes, reply: Reply) -> None:
        """Keeps a reply; one that is there already stays."""
        query = 'INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)'
        self._connect().execute(query, (key, *reply))

    @property
    def tokens(self) -> int:
        """Of all replies together: what has been spent."""
        query = 'SELECT COALESCE(SUM(tokens), 0) FROM replies'
        return self._connection.execute(query).fetchone()[0] if self._connection else 0

    def _connect(self) -> sqlite3.Connection:
        if not self._connection:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Each statement is a transaction of its own.
            self._connection = sqlite3.connect(
                self._path, timeout=_PATIENCE_S, isolation_level=None
            )
            self._connection.execute('PRAGMA journal_mode = WAL')
            self._connection.execute('PRAGMA synchronous = NORMAL')
            self._connection.execute(_TABLE)
        return self._connection


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Cache]:
    """A cache in a file, which is made if it is not there.

    Raises:
        UserError: the file is none of SQLite's or damaged, or cannot be opened or written.
    """
    try:
        with contextlib.closing(Cache(path)) as cache:
            yield cache
    except sqlite3.Error as error:
        raise UserError(
            f'{path} does not serve as a cache of answers ({error}): choose another --cache.'
        ) from error


def _check_writable(path: pathlib.Path) -> None:
    """Checks that a file could be made: without that, the first answer would be lost.

    Raises:
        UserError: it could not.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f'{path} does not serve as a cache of answers (nothing can be written to {there}): '
            'choose another --cache.'
        )


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
