"""What a text looks like in a response, whole or piece by piece."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

from malora_jax.inference import LanguageModel
from malora_jax.models.engine import Token
from malora_jax.models.texts import Ending, TextStream
from malora_jax.serving.scheduler import Scheduler, Ticket


@dataclasses.dataclass
class Piece:
    """What is new of a text.

    Attributes:
        text: what can be shown now.
        tokens: those that were written; a text that a stop string ends may show fewer.
        finish: 'stop' or 'length' with the last piece, else None.
    """

    text: str
    tokens: list[Token]
    finish: str | None


async def pieces(
    scheduler: Scheduler, model: LanguageModel, ticket: Ticket, stops: Sequence[str]
) -> AsyncIterator[Piece]:
    """A text as it is written; whoever stops listening cancels it.

    Raises:
        FailedError: the model failed.
    """
    stream = TextStream(Ending(model.tokenizer, tuple(stops)))
    try:
        while True:
            news = await ticket.next()
            text, finish = stream.add([token.id for token in news.tokens]), news.finish
            if stream.is_over:
                finish = 'stop'
            elif finish:
                text += stream.rest()
            if text or finish or news.tokens:
                yield Piece(text, news.tokens, finish)
            if finish:
                return
    finally:
        scheduler.cancel(ticket)


async def whole(found: AsyncIterator[Piece]) -> Piece:
    """The pieces of a text put together."""
    result = Piece('', [], None)
    async for piece in found:
        result = Piece(result.text + piece.text, result.tokens + piece.tokens, piece.finish)
    return result


def chat_logprobs(
    model: LanguageModel, tokens: Sequence[Token], alternatives: int | None
) -> dict[str, Any] | None:
    """As in chat completions; None where they are not wanted."""
    if alternatives is None:
        return None

    def entry(number: int, log_probability: float) -> dict[str, Any]:
        text = _text(model, number)
        return {'token': text, 'logprob': log_probability, 'bytes': list(text.encode())}

    return {
        'content': [
            {
                **entry(token.id, token.log_probability),
                'top_logprobs': [entry(*other) for other in token.alternatives[:alternatives]],
            }
            for token in tokens
        ],
        'refusal': None,
    }


def completion_logprobs(
    model: LanguageModel, tokens: Sequence[Token], alternatives: int | None, offset: int
) -> dict[str, Any] | None:
    """As in text completions; None where they are not wanted.

    Args:
        model: whose tokens they are.
        tokens: of a piece.
        alternatives: how many are told beside each token.
        offset: characters before the piece.
    """
    if alternatives is None:
        return None
    texts, offsets = [_text(model, token.id) for token in tokens], []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        'tokens': texts,
        'token_logprobs': [token.log_probability for token in tokens],
        'top_logprobs': [
            {_text(model, i): value for i, value in token.alternatives[:alternatives]}
            for token in tokens
        ],
        'text_offset': offsets,
    }


def _text(model: LanguageModel, number: int) -> str:
    return model.tokenizer.decode([number], continues=True)
