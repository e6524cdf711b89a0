"""A model behind an HTTP endpoint that speaks as OpenAI's does."""

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
# The library waits between tries as Retry-After says, or longer each time, up to 8 seconds; a
# longer Retry-After than its 2 minutes we wait for ourselves, so often and so long at most.
_RETRIES = 8
_LONG_WAITS = 4
_LONGEST_WAIT_S = 3600.0
# Codes of errors that tell of the messages, not of the run.
_REFUSALS = ('context_length_exceeded', 'content_filter')
# Of a request: what a server's template may write around messages, and around each.
_FRAME_TOKENS = 64
_MESSAGE_TOKENS = 8
_MOST_CHARACTERS = 200  # Of what a server says, in a message of ours.


class Endpoint:
    """A model behind an endpoint.

    Attributes:
        name: of the model, as requests give it.
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
        """Makes the client; nothing is asked yet.

        Args:
            name: of the model.
            base_url: of the endpoint, to which /chat/completions is added; None = OpenAI's.
            timeout_s: seconds for a try.
            token_limit: of tokens that may be spent in all, in messages and answers; 0 = any.
            spent: tokens that were spent before.

        Raises:
            UserError: the extra `ultralink` is not installed, or there is no key.
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
            # The default one looks at all its connections for each request.
            http_client=self._openai.DefaultAioHttpClient(),
        )
        self._budget = _Budget(token_limit, spent)

    async def close(self) -> None:
        """Closes connections."""
        await self._client.close()

    async def complete(self, request: Request) -> Reply:
        """See `Model`.

        Raises:
            UserError: the request might go over the limit of tokens, or the endpoint does not take
                the key, the model's name or the settings.
            OSError: it cannot be reached, or fails again and again.
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
            # What the server says may hold a part of the key.
            raise UserError(f'{self._where} does not take the key in {KEY}.') from error
        except openai.APIStatusError as error:
            if error.code in _REFUSALS:
                return Reply('', 'refused', 0)
            message = f'{self._where} answers with status {error.status_code}: {_line(error)}'
            if error.status_code == 429 or error.status_code >= 500:
                raise OSError(message) from error
            raise UserError(message) from error
        except openai.APIConnectionError as error:
            # The library's own words are of a time-out even where a connection is refused.
            why = _line(error.__cause__ or '') or _line(error)
            raise OSError(f'{self._where} cannot be reached: {why}') from error
        if isinstance(found, str):  # The library hands over what is not even called JSON.
            raise UserError(f'{self._where} does not speak as OpenAI does: correct --base_url.')
        # Gateways tell of their errors so, with status 200; as an answer it would be kept.
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
                # Not chat.completions.create: its types take more time than all else together.
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
    """Tokens that may be spent."""

    def __init__(self, limit: int, spent: int):
        self._limit = limit
        self._spent = spent
        self._reserved = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserved(self, most: int) -> AsyncIterator[list[int]]:
        """Sets tokens aside for a request; what it spent is appended to the list that this gives.

        Where there might not be enough, those of other requests are waited for: they spend less
        than was set aside for them.

        Raises:
            UserError: there might not be enough when all others are done.
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
    """What a request may spend: no token is shorter than a byte."""
    contents = sum(len(message.content.encode()) for message in request.messages)
    frame = _FRAME_TOKENS + _MESSAGE_TOKENS * len(request.messages)
    return contents + frame + request.sampling.max_tokens


def _reply(found: Any) -> Reply:
    """What there is of an answer; servers leave out or get wrong whatever they may."""
    tokens = _at(found, 'usage', 'total_tokens')
    text = _at(found, 'choices', 0, 'message', 'content')
    reason = _at(found, 'choices', 0, 'finish_reason')
    spent = tokens if isinstance(tokens, int) else 0
    if not isinstance(text, str):
        return Reply('', 'malformed', spent)
    # Halves of characters cannot be written.
    clean = text.encode('utf-8', 'replace').decode().strip()
    return Reply(clean, reason if isinstance(reason, str) and reason else 'stop', spent)


def _at(value: Any, *steps: str | int) -> Any:
    """What is in nested objects and lists, or None."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _retry_after(error: Any) -> float | None:
    """The seconds that a server wants us to wait, if they are more than the library waits."""
    try:
        wait_s = float(error.response.headers.get('retry-after', ''))
    except ValueError:
        return None
    return wait_s if 120 < wait_s <= _LONGEST_WAIT_S else None


def _line(error: object) -> str:
    text = ' '.join(str(getattr(error, 'message', error)).split())
    return text if len(text) <= _MOST_CHARACTERS else f'{text[:_MOST_CHARACTERS]}…'
