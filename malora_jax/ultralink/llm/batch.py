"""A model behind the batch API of an endpoint, as OpenAI's /v1/files and /v1/batches.

Requests are gathered until no further one arrives for a short time, and are then submitted as one
batch. The reply cache records each batch before it is submitted. After an interruption, the next
run finds the batches that were submitted, and collects their replies before it sends requests.
"""

import asyncio
import json
import sys
import uuid
from typing import Any

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import responses
from malora_jax.ultralink.llm.cache import ReplyCache, reply_key
from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from malora_jax.ultralink.llm.endpoint import Endpoint
from malora_jax.ultralink.llm.responses import TransientError

# A batch is submitted when no request arrives for this time, or when it has this size. OpenAI's
# limits are 50,000 requests and 200 MB.
_QUIET_S = 1.0
_MAX_REQUESTS = 50_000
_MAX_BYTES = 100_000_000
# Number of repetitions of a call, and of a request that fails within a batch.
_RETRIES = 8
# Seconds between two questions whether a batch is finished.
_POLL_S = 30.0
_PATH = '/v1/chat/completions'
# Codes of errors of a batch that exceeds the tokens or requests that may be in progress.
_TOO_LARGE = ('token_limit_exceeded', 'request_limit_exceeded')
_FINISHED = ('completed', 'failed', 'expired', 'cancelled')
# Key of a batch's metadata, with the name under which the cache records the batch.
_METADATA = 'malora_jax'


class BatchEndpoint(Endpoint):
    """A model behind the batch API of an endpoint."""

    def __init__(self, *arguments: Any, cache: ReplyCache, **options: Any):
        """Create the HTTP client, without sending a request.

        Args:
            *arguments: Positional arguments of `Endpoint`.
            cache: Cache of replies, which also records the submitted batches.
            **options: Further arguments of `Endpoint`.
        """
        super().__init__(*arguments, **options)
        self._cache = cache
        self._gathered: dict[str, tuple[bytes, asyncio.Future[Reply]]] = {}
        self._gathered_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close all connections to the endpoint; the endpoint continues submitted batches."""
        for task in self._batches:
            task.cancel()
        await super().close()

    async def resume(self) -> None:
        """Collect the replies of the batches that an earlier run has submitted.

        Raises:
            UserError: The endpoint rejects the key.
            OSError: The endpoint cannot be reached, or still fails after all retries.
        """
        for name, batch in self._cache.batches(self.address, self.name).items():
            # The earlier run may have been killed before it knew the id of the batch.
            batch = batch or await self._find(name)
            if batch:
                _tell(batch, 'an earlier run has submitted it')
                for outcome in (await self._collect(name, batch)).values():
                    if isinstance(outcome, Reply):
                        self.meter.usage += outcome.usage
                        self.budget.add(self._amount(outcome.usage))
            self._cache.remove_batch(name)

    async def _request_reply(self, request: ModelRequest, max_tokens: int) -> Reply:
        """Send a request in as many batches as it takes, and return the reply."""
        for attempt in range(_RETRIES + 1):
            try:
                return await self._gather(request)
            except TransientError as error:
                self.meter.errors[error.kind] += 1
                if attempt == _RETRIES:
                    raise
        raise AssertionError

    async def _gather(self, request: ModelRequest) -> Reply:
        """Add a request to the next batch, and wait for its reply."""
        loop = asyncio.get_running_loop()
        identifier = request.digest.hex()
        fields = {'custom_id': identifier, 'method': 'POST', 'url': _PATH}
        line = json.dumps({**fields, 'body': self._body(request)}).encode() + b'\n'
        future: asyncio.Future[Reply] = loop.create_future()
        self._gathered[identifier] = line, future
        self._gathered_bytes += len(line)
        if self._timer:
            self._timer.cancel()
        if len(self._gathered) >= _MAX_REQUESTS or self._gathered_bytes >= _MAX_BYTES:
            self._start_batch()
        else:
            self._timer = loop.call_later(_QUIET_S, self._start_batch)
        return await future

    def _start_batch(self) -> None:
        gathered, self._gathered, self._gathered_bytes = self._gathered, {}, 0
        task = asyncio.create_task(self._run_batch(gathered))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)

    async def _run_batch(self, gathered: dict[str, tuple[bytes, asyncio.Future[Reply]]]) -> None:
        """Submit a batch, wait for its replies, and give each to the request that waits for it."""
        outcomes: dict[str, Reply | Exception] = {}
        missing: Exception = TransientError('not processed', 'The batch ended without a reply.')
        try:
            name = uuid.uuid4().hex
            batch = await self._submit(name, b''.join(line for line, _ in gathered.values()))
            _tell(batch, f'{len(gathered):,} requests')
            outcomes = await self._collect(name, batch)
            self._cache.remove_batch(name)
        except TransientError as error:
            # The batch is paid for, so its requests are not sent again: the next run collects it.
            missing = OSError(str(error))
        except Exception as error:
            missing = error
        for identifier, (_, future) in gathered.items():
            outcome = outcomes.get(identifier, missing)
            if future.cancelled():
                continue
            if isinstance(outcome, Reply):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    async def _submit(self, name: str, lines: bytes) -> str:
        """Submit a batch once, even if the connection breaks, and return its id.

        Args:
            name: Name under which the cache records the batch.
            lines: Content of the batch's file.
        """
        self._cache.record_batch(name, self.address, self.name)
        client = self._client.with_options(max_retries=_RETRIES)
        file = await self._call(client.files.create(file=(f'{name}.jsonl', lines), purpose='batch'))
        for attempt in range(_RETRIES + 1):
            try:
                created = await self._call(
                    self._client.batches.create(
                        input_file_id=file.id,
                        endpoint=_PATH,
                        completion_window='24h',
                        metadata={_METADATA: name},
                    )
                )
                batch = created.id
                break
            except TransientError as error:
                if attempt == _RETRIES:
                    raise
                await asyncio.sleep(error.wait_s(attempt))
                # The endpoint may have accepted the batch although the response did not arrive.
                batch = await self._find(name)
                if batch:
                    break
        self._cache.record_batch(name, self.address, self.name, batch)
        return batch

    async def _find(self, name: str) -> str:
        """Return the id of the batch that was submitted under a name; '' if there is none."""

        async def search() -> str:
            async for batch in self._client.with_options(max_retries=_RETRIES).batches.list():
                if (batch.metadata or {}).get(_METADATA) == name:
                    return batch.id
            return ''

        return await self._call(search())

    async def _collect(self, name: str, batch: str) -> dict[str, Reply | Exception]:
        """Wait until a batch is finished, store its replies, and return all outcomes.

        Returns:
            Reply or error of each request, by `custom_id`. Requests that the endpoint did not
            process, because the batch expired, are missing.
        """
        client = self._client.with_options(max_retries=_RETRIES)
        failures = 0
        while True:
            try:
                state = await self._call(client.batches.retrieve(batch))
                if state.status in _FINISHED:
                    break
                failures = 0
            except TransientError:
                failures += 1
                if failures > _RETRIES:
                    raise
            await asyncio.sleep(_POLL_S)
        files = [each for each in (state.output_file_id, state.error_file_id) if each]
        if state.status == 'failed' and not files:
            self._cache.remove_batch(name)
            raise self._batch_error(state)
        outcomes: dict[str, Reply | Exception] = {}
        for file in files:
            for line in await self._download(file):
                outcomes[line['custom_id']] = outcome = self._outcome(line)
                self.meter.requests += 1
                if isinstance(outcome, Reply) and outcome.is_cacheable:
                    digest = bytes.fromhex(line['custom_id'])
                    key = reply_key(self.address, self.name, digest)
                    self._cache.put(key, outcome, self.meter.model)
        return outcomes

    async def _download(self, file: str) -> list[dict[str, Any]]:
        """Return the lines of a batch's output file."""
        client = self._client.with_options(max_retries=_RETRIES)
        for attempt in range(_RETRIES + 1):
            content = await self._call(client.files.content(file))
            try:
                return [json.loads(line) for line in content.text.split('\n') if line.strip()]
            except ValueError:  # The file was truncated in transit.
                await asyncio.sleep(self._unreadable().wait_s(attempt))
        raise self._unreadable()

    def _outcome(self, line: dict[str, Any]) -> Reply | Exception:
        """Return the reply or the error in a line of an output file."""
        response = line.get('response') or {}
        status, body = response.get('status_code', 500), response.get('body')
        try:
            if status == 200:
                return self._read(body)
            content = body or line.get('error')
            return responses.read_error(self._description, status, content, self._key_variable)
        except (OSError, UserError) as error:
            return error

    def _batch_error(self, state: Any) -> Exception:
        """Return the error of a batch that the endpoint did not accept."""
        faults = [fault.to_dict() for fault in (state.errors and state.errors.data) or ()]
        message = (
            f'{self._description} rejects the batch {state.id}: {responses.error_text(faults)}'
        )
        if any(fault.get('code') in _TOO_LARGE for fault in faults):
            return OSError(f'{message} A smaller --concurrency makes smaller batches.')
        return OSError(message)


def _tell(batch: str, what: str) -> None:
    """Tell the user which batch the run waits for."""
    message = f'Waiting for the batch {batch}: {what}. Repeat the command to resume later.'
    print(message, file=sys.stderr, flush=True)
