"""A model behind an OpenAI-compatible HTTP endpoint."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from malora_jax.errors import UserError
from malora_jax.ultralink.extra import require
from malora_jax.ultralink.llm.chat import Reply, Request

KEY = 'OPENAI_API_KEY'
# The library retries after the time in Retry-After or, without it, with exponential backoff of up
# to 8 seconds. It does not wait for more than 2 minutes. Longer waits are made here, up to this
# many times and seconds.
_RETRIES = 8
_LONG_WAITS = 4
_LONGEST_WAIT_S = 3600.0
# Error codes that concern the messages of one request, not the whole run.
_REFUSALS = ('context_length_exceeded', 'content_filter')
# Upper bounds of the tokens that a chat template adds to a request, and to each message.
_FRAME_TOKENS = 64
_MESSAGE_TOKENS = 8
_MOST_CHARACTERS = 200  # Of a server's message, when quoted in an error.


class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        name: Name of the model, as sent in requests.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        *,
        timeout_s: float,
        token_limit: int,
        spent: int,
    ):
        """Create the HTTP client, without sending a request.

        Args:
            name: Name of the model.
            base_url: Address of the endpoint, to which /chat/completions is appended; None =
                OpenAI's.
            timeout_s: Timeout of one attempt in seconds.
            token_limit: Maximum total number of tokens of messages and replies; 0 = no limit.
            spent: Number of tokens spent before, which count towards the limit.

        Raises:
            UserError: The extra `ultralink` is not installed, or the API key is not set.
        """
        require('aiohttp')
        self._openai = require('openai')
        key = os.environ.get(KEY)
        if not key:
            raise UserError(
                f'{KEY} is not set in the environment; a server that needs no key takes any.'
            )
        self.name = name
        self._client = self._openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            max_retries=_RETRIES,
            timeout=timeout_s,
            # The default client scans all its connections for each request, which is slow.
            http_client=self._openai.DefaultAioHttpClient(),
        )
        self._budget = _Budget(token_limit, spent)

    async def close(self) -> None:
        """Close all connections to the endpoint."""
        await self._client.close()

    async def complete(self, request: Request) -> Reply:
        """Send a request, with retries, and return the reply.

        Messages that the endpoint rejects as too long or by its content filter give a reply with
        the finish reason 'refused'.

        Raises:
            UserError: The request may exceed the token limit, or the endpoint rejects the key, the
                model name or the settings.
            OSError: The endpoint cannot be reached, or still fails after all retries.
        """
        async with self._budget.reserved(_most_tokens(request)) as spent:
            reply = await self._answer(request)
            spent.append(reply.tokens)
        return reply

    async def _answer(self, request: Request) -> Reply:
        openai = self._openai
        try:
            found = await self._ask(request)
        except json.JSONDecodeError:
            return Reply('', 'malformed', 0)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The server's message may contain a part of the key, so it is not shown.
            raise UserError(f'{self._where} does not take the key in {KEY}.') from error
        except openai.APIStatusError as error:
            if error.code in _REFUSALS:
                return Reply('', 'refused', 0)
            message = f'{self._where} answers with status {error.status_code}: {_line(error)}'
            if error.status_code == 429 or error.status_code >= 500:
                raise OSError(message) from error
            raise UserError(message) from error
        except openai.APIConnectionError as error:
            # The library reports a timeout even if the connection is refused; the cause is exact.
            why = _line(error.__cause__ or '') or _line(error)
            raise OSError(f'{self._where} cannot be reached: {why}') from error
        # The library returns a response as text if its content type is not JSON.
        if isinstance(found, str):
            raise UserError(f'{self._where} does not speak as OpenAI does: correct --base_url.')
        # Some gateways report errors with status 200, which must not be cached as replies.
        said = _at(found, 'error', 'message')
        if said:
            raise OSError(f'{self._where} answers with an error: {_line(said)}')
        return _reply(found)

    async def _ask(self, request: Request) -> Any:
        body = {
            'model': self.name,
            'messages': [message._asdict() for message in request.messages],
            'max_tokens': request.sampling.max_tokens,
            'temperature': request.sampling.temperature,
            'top_p': request.sampling.top_p,
            'seed': request.draw,
        }
        for _ in range(_LONG_WAITS):
            try:
                # `chat.completions.create` would spend more time on its types than the rest takes.
                return await self._client.post('/chat/completions', cast_to=object, body=body)
            except self._openai.APIStatusError as error:
                wait_s = _retry_after(error)
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
        raise OSError(f'{self._where} has put us off {_LONG_WAITS} times: try again later.')

    @property
    def _where(self) -> str:
        return f'The endpoint {self._client.base_url}'


class _Budget:
    """A limit on the total number of tokens, with reservations for requests in progress."""

    def __init__(self, limit: int, spent: int):
        self._limit = limit
        self._spent = spent
        self._reserved = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserved(self, most: int) -> AsyncIterator[list[int]]:
        """Reserve tokens for a request; the body appends the number spent to the list that it gets.

        If the limit may be exceeded, wait for requests in progress, which usually spend less than
        they reserved.

        Args:
            most: Upper bound of the number of tokens that the request spends.

        Raises:
            UserError: The request may exceed the limit even after all others have finished.
        """
        if not self._limit:
            yield []
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(most) or not self._reserved)
            if not self._fits(most):
                raise UserError(
                    f'The next request might go over --token-limit={self._limit:,} ({self._spent:,}'
                    ' are spent): the same command with a higher one goes on.'
                )
            self._reserved += most
        spent: list[int] = []
        try:
            yield spent
        finally:
            async with self._changed:
                self._reserved -= most
                self._spent += sum(spent)
                self._changed.notify_all()

    def _fits(self, most: int) -> bool:
        return self._spent + self._reserved + most <= self._limit


def _most_tokens(request: Request) -> int:
    """Return an upper bound of the number of tokens of a request and its reply.

    A token has at least one byte.
    """
    contents = sum(len(message.content.encode()) for message in request.messages)
    frame = _FRAME_TOKENS + _MESSAGE_TOKENS * len(request.messages)
    return contents + frame + request.sampling.max_tokens


def _reply(found: Any) -> Reply:
    """Parse a response leniently, because servers omit fields or fill them wrongly."""
    tokens = _at(found, 'usage', 'total_tokens')
    text = _at(found, 'choices', 0, 'message', 'content')
    reason = _at(found, 'choices', 0, 'finish_reason')
    spent = tokens if isinstance(tokens, int) else 0
    if not isinstance(text, str):
        return Reply('', 'malformed', spent)
    # Replace unpaired surrogates, which cannot be encoded.
    clean = text.encode('utf-8', 'replace').decode().strip()
    return Reply(clean, reason if isinstance(reason, str) and reason else 'stop', spent)


def _at(value: Any, *steps: str | int) -> Any:
    """Return the value at a path in nested objects and lists, or None."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _retry_after(error: Any) -> float | None:
    """Return the wait in Retry-After in seconds, if the library does not wait so long but we do."""
    try:
        wait_s = float(error.response.headers.get('retry-after', ''))
    except ValueError:
        return None
    return wait_s if 120 < wait_s <= _LONGEST_WAIT_S else None


def _line(error: object) -> str:
    text = ' '.join(str(getattr(error, 'message', error)).split())
    return text if len(text) <= _MOST_CHARACTERS else f'{text[:_MOST_CHARACTERS]}…'
