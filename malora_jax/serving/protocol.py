"""Requests as OpenAI's API has them: what is taken, and what is refused."""

from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from malora_jax.models.sampling import MOST_TOP_K
from malora_jax.serving.errors import RefusedError

# Of the alternatives that are told beside a token.
MOST_ALTERNATIVES = 20
_MOST_MESSAGES = 4096
# Fields of an object in a request: each unknown one would be an error message of its own.
_MOST_FIELDS = 64
# Values of a request: no other thread runs while the parser makes them.
_MOST_VALUES = 100_000

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Name = Annotated[str, Field(max_length=256)]


class _Strict(BaseModel):
    """Values must have the type of their field: true is no number, and "1" is none."""

    model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream holds besides."""

    include_usage: bool = False


class Common(_Strict):
    """What both kinds of requests have.

    Fields that would change the text and are not implemented may have the value that changes
    nothing; those that cannot change it are taken and not looked at.
    """

    model: _Name
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MOST_TOP_K)] = 0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None
    metadata: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra='ignore', strict=True)

    type: Literal['text']
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra='ignore', strict=True)

    role: _Name
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)]

    def plain(self) -> dict[str, str]:
        """With its content as one text."""
        parts = self.content
        text = parts if isinstance(parts, str) else ''.join(part.text for part in parts)
        return {'role': self.role, 'content': text}


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[
        list[Message], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: dict[Literal['type'], Literal['text']] | None = None
    store: bool | None = None

    @model_validator(mode='after')
    def check_logprobs(self) -> Self:
        """Alternatives are told with log-probabilities alone."""
        if self.top_logprobs and not self.logprobs:
            raise ValueError('top_logprobs needs logprobs: true')
        return self

    @property
    def limit(self) -> int | None:
        """The most new tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many are told beside each token; None = not even its own log-probability."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] = False
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        """Texts to be continued."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def limit(self) -> int:
        """The most new tokens; OpenAI's default."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many are told beside each token; None = not even its own log-probability."""
        return self.logprobs


SomeRequest = TypeVar('SomeRequest', ChatRequest, CompletionRequest)


def parse(kind: type[SomeRequest], body: bytes) -> SomeRequest:
    """Return a request whose every field has the right type and is in range.

    Args:
        kind: Type of the request.
        body: JSON. What the parser does not take: nesting deeper than 200 levels, numbers of more
            than 4,300 digits, and surrogates, which are no text.

    Raises:
        RefusedError: The body is not a request of this kind.
    """
    _check_count(body)
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(422, f'The body is not valid JSON: {error}.') from error
    objects = {'The body': value} | (value if isinstance(value, dict) else {})
    for name, part in objects.items():
        if isinstance(part, dict) and len(part) > _MOST_FIELDS:
            raise RefusedError(422, f'{name[:100]}: An object may have {_MOST_FIELDS} fields.')
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a field that may have several types, the error is that of the type that it has.
        first = min(found, key=lambda each: each['type'].endswith('_type'))
        # Between the fields' names are those of the types that a value might have had.
        names = [str(p) for p in first['loc'] if isinstance(p, int) or p.isidentifier()]
        where, param = '.'.join(names)[:100], names[0][:100] if names else None
        raise RefusedError(422, f'{where or "The body"}: {first["msg"]}.', param) from error


def _check_count(body: bytes) -> None:
    """Check how many values a body has, much faster than it could be parsed.

    Raises:
        RefusedError: It has too many.
    """
    # Without escaped characters, every second part between quotes is text.
    parts = body.replace(b'\\\\', b'').replace(b'\\"', b'').split(b'"', 2 * _MOST_VALUES + 1)
    outside = b''.join(parts[::2])
    count = outside.count(b'{') + outside.count(b'[') + outside.count(b',')
    if max(count, len(parts) // 2) > _MOST_VALUES:
        raise RefusedError(422, f'The body: A request may have {_MOST_VALUES:,} values.')
