"""Cache of model replies in a SQLite file, so that no request is paid for twice.

The key of a reply is a hash of the endpoint, the model and the request. Files of earlier versions
have keys without the endpoint. Their replies stay usable, for the same model at any endpoint,
because they are paid for.

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
from malora_jax.ultralink.llm.limits import Amount, Budget
from malora_jax.ultralink.llm.usage import TokenUsage, UsageMeter

# Beginning of the name of a model in this process.
LOCAL = 'local:'
# Seconds to wait while another process locks the file.
_LOCK_TIMEOUT_S = 60.0
_TABLES = (
    'CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, '
    'finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID',
    # Batches whose replies are not collected yet; the id is '' until the endpoint has given it.
    'CREATE TABLE IF NOT EXISTS batches (name TEXT PRIMARY KEY, endpoint TEXT NOT NULL, '
    'model TEXT NOT NULL, id TEXT NOT NULL)',
)

# Columns that files of earlier versions lack. Their replies count as completion tokens of a model
# without a name, because the kinds of their tokens and their model are unknown.
_NEW_COLUMNS = {
    'model': "TEXT NOT NULL DEFAULT ''",
    'prompt_tokens': 'INTEGER NOT NULL DEFAULT 0',
    'cached_tokens': 'INTEGER NOT NULL DEFAULT 0',
}


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
        # The values of a damaged file may have other types.
        query = (
            'SELECT text, finish_reason, CAST(tokens AS INTEGER), CAST(prompt_tokens AS INTEGER), '
            'CAST(cached_tokens AS INTEGER) FROM replies WHERE key = ?'
        )
        # Check again whether the file exists, because another process may have created it.
        if not self._connection and not self._path.exists():
            return None
        row = self._connect().execute(query, (key,)).fetchone()
        if row is None:
            return None
        text, finish_reason, tokens, prompt, cached = row
        return Reply(text, finish_reason, tokens, TokenUsage(prompt, tokens - prompt, cached))

    def put(self, key: bytes, reply: Reply, model: str = '') -> None:
        """Store a reply, unless there is one with the same key.

        Args:
            key: Key of the reply.
            reply: Reply to store.
            model: Name of the model in the table of prices, or of a model in this process.
        """
        query = (
            'INSERT OR IGNORE INTO replies '
            '(key, text, finish_reason, tokens, model, prompt_tokens, cached_tokens) '
            'VALUES (?, ?, ?, ?, ?, ?, ?)'
        )
        usage = reply.usage
        values = (reply.text, reply.finish_reason, reply.tokens, model, usage.prompt, usage.cached)
        self._connect().execute(query, (key, *values))

    def put_request(self, key: bytes, model: str, request: ModelRequest) -> None:
        """Store the request of a reply, from which the command `cache` shows its prompt."""
        cached_requests.store(self._connect(), key, model, request)

    def has_messages(self, model: str, request: ModelRequest) -> bool:
        """Return whether a similar request is stored; see `cached_requests.has_messages`."""
        return bool(self._connection) and cached_requests.has_messages(
            self._connect(), model, request
        )

    def read_requests(self, item: str = '', last: int = 0) -> list[CachedRequest]:
        """Return stored requests and their replies, oldest first; see `cached_requests.read`."""
        return cached_requests.read(self._connect(), item, last)

    def count_replies(self) -> list[tuple[str, str, str, int, int]]:
        """Return the counts of replies and tokens; see `cached_requests.count_replies`."""
        return cached_requests.count_replies(self._connect())

    @property
    def is_empty(self) -> bool:
        """True if the cache has no replies."""
        query = 'SELECT 1 FROM replies LIMIT 1'
        return not self._connection or self._connection.execute(query).fetchone() is None

    @property
    def total_tokens(self) -> int:
        """Total number of tokens of all cached replies and their requests."""
        query = 'SELECT COALESCE(SUM(tokens), 0) FROM replies'
        return self._connection.execute(query).fetchone()[0] if self._connection else 0

    def usage_by_model(self) -> dict[str, TokenUsage]:
        """Return the numbers of tokens of all cached replies and their requests, by model.

        Models in this process are left out, because their replies cost nothing.
        """
        query = (
            'SELECT model, SUM(prompt_tokens), SUM(tokens - prompt_tokens), SUM(cached_tokens) '
            f"FROM replies WHERE model NOT LIKE '{LOCAL}%' GROUP BY model ORDER BY model"
        )
        rows = self._connection.execute(query) if self._connection else ()
        return {model: TokenUsage(*counts) for model, *counts in rows}

    def batches(self, endpoint: str, model: str) -> dict[str, str]:
        """Return the ids of the batches whose replies are not collected yet, by recorded name.

        Args:
            endpoint: Address of the endpoint.
            model: Name that identifies the model.
        """
        query = 'SELECT name, id FROM batches WHERE endpoint = ? AND model = ?'
        rows = self._connection.execute(query, (endpoint, model)) if self._connection else ()
        return dict(iter(rows))

    def record_batch(self, name: str, endpoint: str, model: str, identifier: str = '') -> None:
        """Record a batch.

        Args:
            name: Name of the batch.
            endpoint: Address of the endpoint.
            model: Name that identifies the model.
            identifier: Id that the endpoint has given to the batch; '' as long as it is unknown.
        """
        query = 'INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)'
        self._connect().execute(query, (name, endpoint, model, identifier))

    def remove_batch(self, name: str) -> None:
        """Remove the record of a batch, whose replies are in the cache."""
        self._connect().execute('DELETE FROM batches WHERE name = ?', (name,))

    def _connect(self) -> sqlite3.Connection:
        if not self._connection:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is its own transaction.
            self._connection = sqlite3.connect(
                self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None
            )
            self._connection.execute('PRAGMA journal_mode = WAL')
            self._connection.execute('PRAGMA synchronous = NORMAL')
            for table in _TABLES:
                self._connection.execute(table)
            _add_columns(self._connection)
            cached_requests.create_tables(self._connection)
        return self._connection


def _add_columns(connection: sqlite3.Connection) -> None:
    """Add the columns that a file of an earlier version lacks."""
    connection.execute('BEGIN IMMEDIATE')  # Another process may open the file at the same time.
    columns = {row[1] for row in connection.execute('PRAGMA table_info(replies)')}
    for name, declaration in _NEW_COLUMNS.items():
        if name not in columns:
            connection.execute(f'ALTER TABLE replies ADD COLUMN {name} {declaration}')
    connection.execute('COMMIT')


def reply_key(endpoint: str, name: str, digest: bytes) -> bytes:
    """Return the key of a reply.

    Args:
        endpoint: Address of the endpoint; '' for a model in this process.
        name: Name that identifies the model.
        digest: Digest of the request.
    """
    place = f'{endpoint}\0' if endpoint else ''
    return hashlib.sha256(f'{place}{name}\0'.encode() + digest).digest()


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

    def __init__(
        self,
        model: ChatModel,
        cache: ReplyCache,
        endpoint: str = '',
        meter: UsageMeter | None = None,
        budget: Budget | None = None,
    ):
        """Combine a model and a cache.

        Args:
            model: Model that gives the replies that are not in the cache.
            cache: Cache of replies.
            endpoint: Address of the endpoint; '' for a model in this process.
            meter: Counts of the model's requests; None for a model that costs nothing.
            budget: Limits of the model; None for a model without limits.
        """
        self.name = model.name
        self._model = model
        self._cache = cache
        self._endpoint = endpoint
        self._meter = meter
        self._budget = budget
        self._pending: dict[bytes, asyncio.Task[Reply]] = {}

    async def complete(self, request: ModelRequest) -> Reply:
        """Return the reply from the cache, or request it from the model and store it.

        Concurrent calls with the same request share one request to the model.

        Raises:
            UserError: The model rejects the request, or the request may exceed the token limit.
            OSError: The model fails or cannot be reached.
        """
        cached = self.find(request)
        if cached is not None:
            return cached
        key = self._key(request)
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._request_and_store(key, request))
        return await self._pending[key]

    def find(self, request: ModelRequest) -> Reply | None:
        """Return the reply from the cache, or None if there is none; no request is sent."""
        # Files of earlier versions have keys without the endpoint.
        return self._cache.get(self._key(request)) or (
            self._cache.get(reply_key('', self.name, request.digest)) if self._endpoint else None
        )

    def has_similar_reply(self, request: ModelRequest) -> bool:
        """Return whether the cache has a reply to the same messages of the current item.

        It may be from another endpoint, or to a request with other sampling settings.
        """
        return self._cache.has_messages(self.name, request)

    def cost(self, usage: TokenUsage) -> float | None:
        """Return the cost of tokens in US dollars, or None if the prices are unknown."""
        return self._meter.cost(usage) if self._meter else 0.0

    def limit_warning(self, usage: TokenUsage) -> str:
        """Return a sentence if further tokens probably exceed a limit; '' otherwise."""
        expected = Amount(usage.total, self.cost(usage) or 0.0)
        return self._budget.warning(expected) if self._budget else ''

    @property
    def is_empty(self) -> bool:
        """True if the cache has no replies."""
        return self._cache.is_empty

    @property
    def progress_facts(self) -> list[str]:
        """Short texts for the progress: tokens, errors and cost of the requests so far."""
        return self._meter.facts if self._meter else []

    def report(self) -> str:
        """Return the counts of this run and of all runs as text; '' if there were no requests."""
        total = self._cache.usage_by_model()
        return self._meter.report(total) if self._meter and (self._meter.requests or total) else ''

    def report_run(self) -> str:
        """Return the counts of this run as text; '' if there were no requests.

        Unlike `report`, it does not read the cache, so any thread may call it.
        """
        return self._meter.report({}) if self._meter and self._meter.requests else ''

    def _key(self, request: ModelRequest) -> bytes:
        return reply_key(self._endpoint, self.name, request.digest)

    async def _request_and_store(self, key: bytes, request: ModelRequest) -> Reply:
        try:
            reply = await self._model.complete(request)
            if reply.is_cacheable:
                self._cache.put_request(key, self.name, request)
                self._cache.put(key, reply, self._meter.model if self._meter else self.name)
            return reply
        finally:
            del self._pending[key]
