"""A model at an OpenAI-compatible HTTP endpoint."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from malora_jax.errors import UserError
from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from malora_jax.ultralink.optional_imports import import_extra

API_KEY_VARIABLE = 'OPENAI_API_KEY'
# The library retries after the time in Retry-After if it is at most 2 minutes; without Retry-After,
# it backs off exponentially, for up to 8 seconds per retry. For a longer Retry-After,
# `Endpoint._post` waits itself: at most _MAX_LONG_WAITS times, each at most _MAX_WAIT_S seconds.
_RETRIES = 8
_MAX_LONG_WAITS = 4
_MAX_WAIT_S = 3600.0
# Error codes that concern the messages of one request, not the whole run.
_REFUSALS = ('context_length_exceeded', 'content_filter')
# Upper bounds of the tokens that a chat template adds to a request, and to each message.
_TEMPLATE_TOKENS = 64
_MESSAGE_TOKENS = 8
# Maximum length of a server's message that an error quotes.
_MAX_MESSAGE_CHARACTERS = 200


class Endpoint:
    """A model at an OpenAI-compatible endpoint.

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
        tokens_used: int,
    ):
        """Create the HTTP client, without sending a request.

        Args:
            name: Name of the model.
            base_url: Address of the endpoint, to which /chat/completions is appended; None =
                OpenAI's.
            timeout_s: Timeout of one attempt in seconds.
            token_limit: Maximum total number of tokens of messages and replies; 0 = no limit.
            tokens_used: Number of tokens used before, which count towards the limit.

        Raises:
            UserError: The extra `ultralink` is not installed, or the API key is not set.
        """
        import_extra('aiohttp')
        self._openai = import_extra('openai')
        key = os.environ.get(API_KEY_VARIABLE)
        if not key:
            raise UserError(
                f'The environment variable {API_KEY_VARIABLE} is not set; if the server needs no '
                'key, set it to any value.'
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
        self._budget = _TokenBudget(token_limit, tokens_used)

    async def close(self) -> None:
        """Close all connections to the endpoint."""
        await self._client.close()

    async def complete(self, request: ModelRequest) -> Reply:
        """Send a request, with retries, and return the reply.

        If the endpoint rejects the messages because they are too long, or because of its content
        filter, the reply has the finish reason 'refused'.

        Raises:
            UserError: The request may exceed the token limit, or the endpoint rejects the key, the
                model name or the settings.
            OSError: The endpoint cannot be reached, or still fails after all retries.
        """
        async with self._budget.reserve(_max_total_tokens(request)) as usage:
            reply = await self._request_reply(request)
            usage.append(reply.tokens)
        return reply

    async def _request_reply(self, request: ModelRequest) -> Reply:
        openai = self._openai
        try:
            response = await self._post(request)
        except json.JSONDecodeError:
            return Reply('', 'malformed', 0)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The server's message may contain a part of the key, so it is not shown.
            raise UserError(
                f'{self._description} rejects the API key in {API_KEY_VARIABLE}.'
            ) from error
        except openai.APIStatusError as error:
            if error.code in _REFUSALS:
                return Reply('', 'refused', 0)
            message = f'{self._description} answers with status {error.status_code}: {_line(error)}'
            if error.status_code == 429 or error.status_code >= 500:
                raise OSError(message) from error
            raise UserError(message) from error
        except openai.APIConnectionError as error:
            # The library reports a timeout even if the connection is refused; the cause is exact.
            cause = _line(error.__cause__ or '') or _line(error)
            raise OSError(f'{self._description} cannot be reached: {cause}') from error
        # The library returns a response as text if its content type is not JSON.
        if isinstance(response, str):
            raise UserError(
                f'{self._description} did not reply with JSON: --base_url must be the address of '
                'an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.'
            )
        # Some gateways report errors with status 200, which must not be cached as replies.
        error_message = _get_nested(response, 'error', 'message')
        if error_message:
            raise OSError(f'{self._description} answers with an error: {_line(error_message)}')
        return _parse_reply(response)

    async def _post(self, request: ModelRequest) -> Any:
        body = {
            'model': self.name,
            'messages': [message._asdict() for message in request.messages],
            'max_tokens': request.sampling.max_tokens,
            'temperature': request.sampling.temperature,
            'top_p': request.sampling.top_p,
            'seed': request.sampling_seed,
        }
        for _ in range(_MAX_LONG_WAITS):
            try:
                # `chat.completions.create` validates types, which takes most of the time.
                return await self._client.post('/chat/completions', cast_to=object, body=body)
            except self._openai.APIStatusError as error:
                wait_s = _retry_after(error)
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
        raise OSError(
            f'{self._description} still asks to wait after {_MAX_LONG_WAITS} long waits: try '
            'again later.'
        )

    @property
    def _description(self) -> str:
        return f'The endpoint {self._client.base_url}'


class _TokenBudget:
    """A limit on the total number of tokens, with reservations for requests in progress."""

    def __init__(self, limit: int, tokens_used: int):
        self._limit = limit
        self._tokens_used = tokens_used
        self._reserved = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, max_tokens: int) -> AsyncIterator[list[int]]:
        """Reserve tokens for one request while the `with` block runs.

        If the limit may be exceeded, wait for requests in progress, which usually use fewer tokens
        than they reserved.

        Args:
            max_tokens: Upper bound of the number of tokens that the request uses.

        Yields:
            Empty list, to which the block appends the number of tokens that the request used.

        Raises:
            UserError: The request may exceed the limit even after all others have finished.
        """
        if not self._limit:
            yield []
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(max_tokens) or not self._reserved)
            if not self._fits(max_tokens):
                raise UserError(
                    f'The next request might exceed --token-limit={self._limit:,}; '
                    f'{self._tokens_used:,} tokens are used already. Repeat the command with a '
                    'higher limit to resume.'
                )
            self._reserved += max_tokens
        usage: list[int] = []
        try:
            yield usage
        finally:
            async with self._changed:
                self._reserved -= max_tokens
                self._tokens_used += sum(usage)
                self._changed.notify_all()

    def _fits(self, max_tokens: int) -> bool:
        return self._tokens_used + self._reserved + max_tokens <= self._limit


def _max_total_tokens(request: ModelRequest) -> int:
    """Return an upper bound of the number of tokens of a request and its reply.

    A token has at least one byte, so a message has at most as many tokens as bytes.
    """
    contents = sum(len(message.content.encode()) for message in request.messages)
    frame = _TEMPLATE_TOKENS + _MESSAGE_TOKENS * len(request.messages)
    return contents + frame + request.sampling.max_tokens


def _parse_reply(response: Any) -> Reply:
    """Parse a response leniently, because servers omit fields or fill them wrongly."""
    tokens = _get_nested(response, 'usage', 'total_tokens')
    text = _get_nested(response, 'choices', 0, 'message', 'content')
    reason = _get_nested(response, 'choices', 0, 'finish_reason')
    total_tokens = tokens if isinstance(tokens, int) else 0
    if not isinstance(text, str):
        return Reply('', 'malformed', total_tokens)
    # Replace unpaired surrogates, which cannot be encoded.
    clean = text.encode('utf-8', 'replace').decode().strip()
    return Reply(clean, reason if isinstance(reason, str) and reason else 'stop', total_tokens)


def _get_nested(value: Any, *steps: str | int) -> Any:
    """Return the value at a path in nested objects and lists, or None."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _retry_after(error: Any) -> float | None:
    """Return the seconds that `Endpoint` waits before it repeats a request; None = no wait.

    The header Retry-After of the response gives the time; if it has no number, the result is None.
    `Endpoint` waits only for more than 2 minutes, because the OpenAI library itself waits for
    shorter times. `Endpoint` does not wait for more than an hour.
    """
    try:
        wait_s = float(error.response.headers.get('retry-after', ''))
    except ValueError:
        return None
    return wait_s if 120 < wait_s <= _MAX_WAIT_S else None


def _line(error: object) -> str:
    """Return the message of an error on one line, truncated if it is long."""
    text = ' '.join(str(getattr(error, 'message', error)).split())
    return text if len(text) <= _MAX_MESSAGE_CHARACTERS else f'{text[:_MAX_MESSAGE_CHARACTERS]}…'
