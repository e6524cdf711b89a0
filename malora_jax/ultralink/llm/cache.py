"""Cache of model replies in a SQLite file, so that no request is paid for twice.

Each reply is committed before it is used. Because of write-ahead logging (WAL), a killed process
loses no reply. A power failure loses at most the last few and does not corrupt the file.
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
from malora_jax.ultralink.llm import cached_requests
from malora_jax.ultralink.llm.cached_requests import CachedRequest
from malora_jax.ultralink.llm.chat import ChatModel, ModelRequest, Reply

# Seconds to wait while another process locks the file.
_LOCK_TIMEOUT_S = 60.0
_TABLE = (
    'CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, '
    'finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID'
)


class ReplyCache:
    """Replies in a SQLite file, by a hash of model and request.

    The file is created with the first reply, so that a command that fails earlier leaves no file.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._connection: sqlite3.Connection | None = None
        if path.exists():
            files.check_regular_file(path)
            self._connect()
        else:
            _check_writable(path)

    def close(self) -> None:
        """Close the connection to the file."""
        if self._connection:
            self._connection.close()

    def get(self, key: bytes) -> Reply | None:
        """Return the reply with a key; None if there is none."""
        query = 'SELECT text, finish_reason, tokens FROM replies WHERE key = ?'
        # Check again whether the file exists, because another process may have created it.
        if not self._connection and not self._path.exists():
            return None
        row = self._connect().execute(query, (key,)).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: bytes, reply: Reply) -> None:
        """Store a reply, unless there is one with the same key."""
        query = 'INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)'
        self._connect().execute(query, (key, *reply))

    def put_request(self, key: bytes, model: str, request: ModelRequest) -> None:
        """Store the request of a reply, from which the command `cache` shows its prompt."""
        cached_requests.store(self._connect(), key, model, request)

    def read_requests(self, item: str = '', last: int = 0) -> list[CachedRequest]:
        """Return stored requests and their replies, oldest first; see `cached_requests.read`."""
        return cached_requests.read(self._connect(), item, last)

    def count_replies(self) -> list[tuple[str, str, str, int, int]]:
        """Return the counts of replies and tokens; see `cached_requests.count_replies`."""
        return cached_requests.count_replies(self._connect())

    @property
    def total_tokens(self) -> int:
        """Total number of tokens of all cached replies and their requests."""
        query = 'SELECT COALESCE(SUM(tokens), 0) FROM replies'
        return self._connection.execute(query).fetchone()[0] if self._connection else 0

    def _connect(self) -> sqlite3.Connection:
        if not self._connection:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is its own transaction.
            self._connection = sqlite3.connect(
                self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None
            )
            self._connection.execute('PRAGMA journal_mode = WAL')
            self._connection.execute('PRAGMA synchronous = NORMAL')
            self._connection.execute(_TABLE)
            cached_requests.create_tables(self._connection)
        return self._connection


@contextlib.contextmanager
def open_cache(path: pathlib.Path) -> Iterator[ReplyCache]:
    """Open the reply cache in a file, which is created with the first reply.

    Raises:
        UserError: The file is not a SQLite database, is damaged, or cannot be opened or written.
    """
    try:
        with contextlib.closing(ReplyCache(path)) as cache:
            yield cache
    except sqlite3.Error as error:
        raise UserError(
            f'{path} cannot be used as the reply cache ({error}): choose another --cache.'
        ) from error


def _check_writable(path: pathlib.Path) -> None:
    """Check that the cache file can be created, before any reply is paid for.

    Raises:
        UserError: The file cannot be created.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f'{path} cannot be used as the reply cache (nothing can be written to {folder}): '
            'choose another --cache.'
        )


class CachedModel:
    """A model with a cache of its replies.

    Attributes:
        name: Name of the model.
    """

    def __init__(self, model: ChatModel, cache: ReplyCache):
        self.name = model.name
        self._model = model
        self._cache = cache
        self._pending: dict[bytes, asyncio.Task[Reply]] = {}

    async def complete(self, request: ModelRequest) -> Reply:
        """Return the reply from the cache, or request it from the model and store it.

        Concurrent calls with the same request share one request to the model.

        Raises:
            UserError: The model rejects the request, or the request may exceed the token limit.
            OSError: The model fails or cannot be reached.
        """
        key = hashlib.sha256(self.name.encode() + b'\0' + request.digest).digest()
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._request_and_store(key, request))
        return await self._pending[key]

    async def _request_and_store(self, key: bytes, request: ModelRequest) -> Reply:
        try:
            reply = await self._model.complete(request)
            self._cache.put_request(key, self.name, request)
            self._cache.put(key, reply)
            return reply
        finally:
            del self._pending[key]
