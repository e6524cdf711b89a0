"""Streamed responses as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from malora_jax.serving import response_json
from malora_jax.serving.deadline import Deadline
from malora_jax.serving.errors import ApiError
from malora_jax.serving.generation import Generation, TextPiece
from malora_jax.serving.protocol import ChatRequest, CompletionRequest


class EventStream(StreamingResponse):
    """A response of server-sent events, whose generation is cancelled if the client disconnects."""

    def __init__(self, events: AsyncIterator[str], cancel: Callable[[], None]):
        super().__init__(events, media_type='text/event-stream')
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as an ASGI application, and cancel unfinished work at the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def events(
    body: ChatRequest | CompletionRequest,
    generation: Generation,
    common_fields: Mapping[str, Any],
    make_choice: Callable[[TextPiece, int, int, bool], dict[str, Any]],
    prompt_tokens: int,
    deadline: Deadline,
) -> AsyncIterator[str]:
    """Yield the events of a streamed response: a chunk for each piece, or an error, then [DONE].

    Args:
        body: Parsed body of the request.
        generation: Texts of the request.
        common_fields: Fields that all chunks have.
        make_choice: Function that returns an entry of `choices`, given a piece of text, the index
            of its text, the number of characters before the piece, and whether the response is
            streamed.
        prompt_tokens: Number of tokens of all prompts, for the field `usage`.
        deadline: Deadline of the request.
    """
    tokens, offsets = 0, [0] * len(generation.texts)
    try:
        async with asyncio.timeout_at(deadline.at):
            async for index, piece in generation.pieces():
                chunk = make_choice(piece, index, offsets[index], True)
                tokens += len(piece.tokens)
                offsets[index] += len(piece.text)
                yield _event(dict(common_fields) | {'choices': [chunk]})
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event(
                dict(common_fields)
                | {'choices': [], 'usage': response_json.usage(prompt_tokens, tokens)}
            )
    except TimeoutError:
        yield _event(deadline.error.body())
    except ApiError as error:
        yield _event(error.body())
    yield 'data: [DONE]\n\n'


def _event(value: Mapping[str, Any]) -> str:
    return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'
