"""Conversion of generated texts and log-probabilities to the JSON of responses."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from malora_jax.inference import LanguageModel
from malora_jax.models.engine import Token
from malora_jax.serving.generation import Generation, TextPiece


async def collect_texts(generation: Generation) -> list[TextPiece]:
    """Wait for all texts of a request, and return each one as a single piece.

    Args:
        generation: Texts of the request.

    Raises:
        ApiError: The generation of a text failed.
    """
    texts = [TextPiece('', [], None) for _ in generation.texts]
    async for index, piece in generation.pieces():
        before = texts[index]
        texts[index] = TextPiece(
            before.text + piece.text, before.tokens + piece.tokens, piece.finish_reason
        )
    return texts


def encode(value: Any, depth: int = 6) -> Iterator[str]:
    """Yield the JSON text of a value in parts, so that other threads can run between two parts.

    Args:
        value: JSON-serializable value.
        depth: Number of nesting levels that are split into parts; deeper values are encoded as one
            part.
    """
    if depth and isinstance(value, dict):
        for i, (key, part) in enumerate(value.items()):
            yield f'{", " if i else "{"}{json.dumps(key, ensure_ascii=False)}: '
            yield from encode(part, depth - 1)
        yield '}' if value else '{}'
    elif depth and isinstance(value, list):
        for i, part in enumerate(value):
            yield ', ' if i else '['
            yield from encode(part, depth - 1)
        yield ']' if value else '[]'
    else:
        yield json.dumps(value, ensure_ascii=False)


def chat_logprobs(
    model: LanguageModel, tokens: Sequence[Token], num_top_logprobs: int | None
) -> dict[str, Any] | None:
    """Return the field `logprobs` of a chat completion.

    Args:
        model: Model that generated the tokens.
        tokens: Tokens of a piece of the generated text.
        num_top_logprobs: Number of most probable tokens to report per position. If it is None, the
            request does not ask for log-probabilities, and this function returns None.
    """
    if num_top_logprobs is None:
        return None

    def entry(token_id: int, log_probability: float) -> dict[str, Any]:
        text = _token_text(model, token_id)
        return {'token': text, 'logprob': log_probability, 'bytes': list(text.encode())}

    return {
        'content': [
            {
                **entry(token.id, token.log_probability),
                'top_logprobs': [entry(*other) for other in token.top_logprobs[:num_top_logprobs]],
            }
            for token in tokens
        ],
        'refusal': None,
    }


def completion_logprobs(
    model: LanguageModel, tokens: Sequence[Token], num_top_logprobs: int | None, offset: int
) -> dict[str, Any] | None:
    """Return the field `logprobs` of a text completion.

    Args:
        model: Model that generated the tokens.
        tokens: Tokens of a piece of the generated text.
        num_top_logprobs: Number of most probable tokens to report per position. If it is None, the
            request does not ask for log-probabilities, and this function returns None.
        offset: Number of characters of the generated text before this piece. The offsets of the
            tokens in the response start there.
    """
    if num_top_logprobs is None:
        return None
    texts, offsets = [_token_text(model, token.id) for token in tokens], []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        'tokens': texts,
        'token_logprobs': [token.log_probability for token in tokens],
        'top_logprobs': [
            {_token_text(model, i): value for i, value in token.top_logprobs[:num_top_logprobs]}
            for token in tokens
        ],
        'text_offset': offsets,
    }


def _token_text(model: LanguageModel, token_id: int) -> str:
    return model.tokenizer.decode([token_id], continues=True)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the field `usage` of a response: numbers of tokens."""
    return {
        'prompt_tokens': prompt_tokens,
        'completion_tokens': completion_tokens,
        'total_tokens': prompt_tokens + completion_tokens,
    }
