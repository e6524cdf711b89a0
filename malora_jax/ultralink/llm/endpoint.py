"""A model at an OpenAI-compatible HTTP endpoint."""

import asyncio
import dataclasses
import email.utils
import json
import os
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import responses
from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from malora_jax.ultralink.llm.first_replies import FirstReplies
from malora_jax.ultralink.llm.limits import Amount, Budget, MinuteLimit
from malora_jax.ultralink.llm.prices import load_prices
from malora_jax.ultralink.llm.request_format import EndpointSettings
from malora_jax.ultralink.llm.responses import TransientError, UnreadableError
from malora_jax.ultralink.llm.usage import TokenUsage, UsageMeter
from malora_jax.ultralink.optional_imports import import_extra

# Number of repetitions of a request that fails, and of one whose response cannot be read.
_RETRIES = 8
_UNREADABLE_RETRIES = 4
_NOT_REACHED = 'not reached'  # Kind of a failure without a response.
# A longer Retry-After is not waited for.
_MAX_RETRY_AFTER_S = 3600.0
# Number of requests in a row without a readable response, after which no further one is sent.
_MAX_UNREADABLE = 3
# Upper bounds of the tokens that a chat template adds to a request, and to each message.
_TEMPLATE_TOKENS = 64
_MESSAGE_TOKENS = 8


class Endpoint:
    """A model at an OpenAI-compatible endpoint.

    Attributes:
        name: Name of the model, with all changes of the request format.
        meter: Counts of the requests of this run.
        budget: Limits on tokens and price, and the amounts used so far.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        *,
        timeout_s: float,
        token_limit: int,
        tokens_used: int,
        settings: EndpointSettings | None = None,
        usage_before: Mapping[str, TokenUsage] | None = None,
        needs_key: bool = True,
    ):
        """Create the HTTP client, without sending a request.

        Args:
            name: Name of the model.
            base_url: Address of the endpoint, to which /chat/completions is appended; None =
                OpenAI's.
            timeout_s: Timeout of one attempt in seconds.
            token_limit: Maximum total number of tokens of messages and replies; 0 = no limit.
            tokens_used: Number of tokens used before, which count towards the limit.
            settings: Format of requests, limits and prices; None = the defaults.
            usage_before: Tokens used before, by model, whose cost counts towards the price limit.
            needs_key: Whether the API key must be set; False if no request will be sent.

        Raises:
            UserError: The extra `ultralink` is not installed, the API key is not set, or the prices
                cannot be read or lack a model.
        """
        import_extra('aiohttp')
        self._openai = import_extra('openai')
        settings = settings or EndpointSettings()
        self._key_variable = settings.api_key_variable
        key = os.environ.get(self._key_variable, '')
        if needs_key and not key:
            raise UserError(
                f'The environment variable {self._key_variable} is not set; if the server needs no '
                'key, set it to any value.'
            )
        self._model = name
        self._format = settings.request_format
        self.name = self._format.identify(name)
        self._client = self._openai.AsyncOpenAI(
            api_key=key or 'none',  # The library refuses an empty key.
            base_url=base_url,
            # Each attempt must wait for the limits per minute, so the library repeats none.
            max_retries=0,
            timeout=timeout_s,
            default_headers=settings.headers,
            # The default client scans all its connections for each request, which is slow.
            http_client=self._openai.DefaultAioHttpClient(),
        )
        self._prices = load_prices(settings.prices)
        self.meter = UsageMeter(name, self._prices)
        if settings.price_limit:
            for model in (name, *(usage_before or {})):
                if model not in self._prices:
                    known = ', '.join(map(repr, self._prices.models)) or 'no model'
                    raise UserError(
                        f'--price_limit: {settings.prices} has no prices of {model!r}, only of '
                        f'{known}.'
                    )
        costs = (each.cost(model, self._prices) for model, each in (usage_before or {}).items())
        self.budget = Budget(
            Amount(token_limit, settings.price_limit),
            Amount(tokens_used, sum(cost or 0.0 for cost in costs)),
        )
        self._requests_per_minute = MinuteLimit(settings.requests_per_minute)
        self._tokens_per_minute = MinuteLimit(settings.tokens_per_minute)
        self._first_replies = FirstReplies(name)
        self._unreadable_in_a_row = 0

    @property
    def address(self) -> str:
        """Address of the endpoint, which cache keys contain."""
        return str(self._client.base_url).rstrip('/')

    async def close(self) -> None:
        """Close all connections to the endpoint."""
        await self._client.close()

    async def complete(self, request: ModelRequest) -> Reply:
        """Send a request, with retries, and return the reply.

        If the endpoint rejects the messages because they are too long, or because of its content
        filter, the reply has the finish reason 'refused'.

        Raises:
            UserError: The request may exceed a limit; the endpoint rejects the key, the model name
                or the parameters; or the model has only reasoned so far.
            OSError: The endpoint cannot be reached, still fails after all retries, or the account
                has no money left.
        """
        if self._unreadable_in_a_row >= _MAX_UNREADABLE:
            raise OSError(
                f'{self._description} sends responses that are no valid JSON: try again later.'
            )
        bound = self._amount(_max_usage(request))
        for unreadable in range(_UNREADABLE_RETRIES + 1):
            async with self.budget.reserve(bound) as reservation:
                self._first_replies.check()
                try:
                    reply = await self._request_reply(request, bound.tokens)
                except UnreadableError as error:
                    # It was paid for. Until the next response, it counts as the upper bound.
                    reservation.used = bound
                    self.meter.errors[error.kind] += 1
                    wait_s = error.wait_s(unreadable)
                else:
                    self._unreadable_in_a_row = 0
                    reply = _with_unreadable(reply, unreadable)
                    self.meter.usage += reply.usage
                    reservation.used = bound
                    # A server that counts no tokens would otherwise never reach a limit.
                    if reply.tokens or reply.finish_reason == 'refused':
                        reservation.used = self._amount(reply.usage) - bound * unreadable
                    return reply
            await asyncio.sleep(wait_s)
        self._unreadable_in_a_row += 1
        return Reply('', 'malformed', 0)

    async def _request_reply(self, request: ModelRequest, max_tokens: int) -> Reply:
        """Send a request until it does not fail.

        Raises:
            UnreadableError: The response was truncated in transit.
        """
        for attempt in range(_RETRIES + 1):
            try:
                async with self._first_replies.request():
                    return await self._attempt(request, max_tokens)
            except UnreadableError:
                raise
            except TransientError as error:
                self.meter.errors[error.kind] += 1
                if attempt == _RETRIES:
                    raise
                self._say_that_it_retries(error)
                await asyncio.sleep(error.wait_s(attempt))
        raise AssertionError

    def _say_that_it_retries(self, error: TransientError) -> None:
        """Say once that requests are retried, because the wait is long if the address is wrong."""
        if error.kind == _NOT_REACHED and self.meter.errors[_NOT_REACHED] == 1:
            reason = str(error).rstrip('.')
            retries = f'each request is retried up to {_RETRIES} times.'
            print(f'{reason}; {retries}', file=sys.stderr, flush=True)

    async def _attempt(self, request: ModelRequest, max_tokens: int) -> Reply:
        """Send a request once, as soon as the limits per minute allow it.

        Raises:
            TransientError: The request failed, and may be repeated.
        """
        await self._requests_per_minute.acquire(1)
        counted = await self._tokens_per_minute.acquire(max_tokens)
        self.meter.requests += 1
        try:
            body = await self._post(self._body(request))
            reply = body if isinstance(body, Reply) else self._read(body)
        except UnreadableError:
            raise  # Its tokens are unknown, so the upper bound stays.
        except TransientError:
            self._tokens_per_minute.correct(counted, 0)
            raise
        except (UserError, OSError):
            self.meter.errors['rejected'] += 1
            raise
        self._tokens_per_minute.correct(counted, reply.tokens or max_tokens)
        return reply

    async def _call(self, call: Awaitable[Any]) -> Any:
        """Await a call of the OpenAI library.

        Returns:
            The result; or the reply 'refused', if the endpoint does not accept the messages.

        Raises:
            TransientError: The call failed, and may be repeated.
            UserError: The endpoint rejects the key, the model name or the parameters.
            OSError: The account has no money left.
        """
        openai = self._openai
        try:
            return await call
        except json.JSONDecodeError as error:
            raise self._unreadable() from error
        except openai.APIStatusError as error:
            content = responses.parse_json_or_text(error.response.text)
            return responses.read_error(
                self._description,
                error.status_code,
                content,
                self._key_variable,
                _retry_after(error.response.headers),
            )
        except openai.APIConnectionError as error:
            # The library's HTTP client may be one of two, with the same names of errors. This one
            # is raised if the connection breaks within the content of a response.
            if type(error.__cause__).__name__ == 'ReadError':
                raise self._unreadable() from error
            # The library reports a timeout even if the connection is refused; the cause is exact.
            cause = responses.one_line(error.__cause__ or '') or responses.one_line(error)
            # aiohttp names the default settings of TLS, even for an address without TLS.
            cause = cause.replace(' ssl:default', '')
            message = f'{self._description} cannot be reached: {cause}'
            raise TransientError(_NOT_REACHED, message) from error

    async def _post(self, body: dict[str, Any]) -> Any:
        """Send a request, and return the JSON value of the response, or the reply 'refused'."""
        # `chat.completions.create` validates types, which takes most of the time.
        call = self._client.post('/chat/completions', cast_to=object, body=body)
        response = await self._call(call)
        # The library returns a response as text if its content type is not JSON.
        if isinstance(response, str):
            raise UserError(
                f'{self._description} did not reply with JSON: --base_url must be the address of '
                'an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.'
            )
        return response

    def _read(self, body: Any) -> Reply:
        """Return the reply in a response, and count whether it has an answer."""
        reply = responses.read_reply(self._description, body)
        self._first_replies.count(reply.text, responses.is_only_thought(body, reply))
        return reply

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        """Return the body of a request, in the format of the endpoint."""
        standard = {
            'model': self._model,
            'messages': [message._asdict() for message in request.messages],
            'max_tokens': request.sampling.max_tokens,
            'temperature': request.sampling.temperature,
            'top_p': request.sampling.top_p,
            'seed': request.sampling_seed,
        }
        return self._format.body(standard)

    def _amount(self, usage: TokenUsage) -> Amount:
        return Amount(usage.total, usage.cost(self._model, self._prices) or 0.0)

    def _unreadable(self) -> UnreadableError:
        message = f'{self._description} sends a response that is no valid JSON.'
        return UnreadableError('unreadable', message)

    @property
    def _description(self) -> str:
        return f'The endpoint {self._client.base_url}'


def _with_unreadable(reply: Reply, unreadable: int) -> Reply:
    """Add the tokens of responses that were truncated in transit to those of their repetition.

    They were paid for, but their tokens are unknown. Since the request is the same, they count like
    the response that can be read, without a discount for cached tokens.

    Args:
        reply: Reply that can be read.
        unreadable: Number of earlier responses to the same request.
    """
    usage = reply.usage + dataclasses.replace(reply.usage, cached=0) * unreadable
    return dataclasses.replace(reply, tokens=usage.total, usage=usage)


def _max_usage(request: ModelRequest) -> TokenUsage:
    """Return an upper bound of the numbers of tokens of a request and its reply.

    A token has at least one byte, so a message has at most as many tokens as bytes.
    """
    contents = sum(len(message.content.encode()) for message in request.messages)
    frame = _TEMPLATE_TOKENS + _MESSAGE_TOKENS * len(request.messages)
    return TokenUsage(contents + frame, request.sampling.max_tokens)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in the headers Retry-After-Ms or Retry-After, if at most an hour."""
    for name, factor in (('retry-after-ms', 1e-3), ('retry-after', 1.0)):
        text = headers.get(name, '')
        date = email.utils.parsedate_tz(text)
        try:
            wait_s = email.utils.mktime_tz(date) - time.time() if date else factor * float(text)
        except ValueError:
            continue
        if 0 <= wait_s <= _MAX_RETRY_AFTER_S:
            return wait_s
    return None
