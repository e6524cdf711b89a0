"""Request schemas of OpenAI's API: which fields and values are supported, and their validation."""

from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from malora_jax.models.sampling import MAX_TOP_K
from malora_jax.serving.errors import ApiError

# Maximum number of most probable tokens whose log-probabilities are reported at each position.
MAX_TOP_LOGPROBS = 20
_MAX_MESSAGES = 4096
# Maximum number of fields of an object in a request; each unknown field causes a separate error.
_MAX_FIELDS = 64
# Maximum number of values in a request, because no other thread runs while they are parsed.
_MAX_VALUES = 100_000

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_TokenCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Name = Annotated[str, Field(max_length=256)]


class _Strict(BaseModel):
    """Base of Pydantic models without type coercion: neither true nor "1" counts as a number."""

    model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """Options of a streamed response."""

    include_usage: bool = False


class BaseRequest(_Strict):
    """Fields that chat and text completion requests have in common.

    Fields that would change the text but are not implemented accept only the value that has no
    effect. Fields that cannot change the text are accepted and ignored.
    """

    model: _Name
    max_tokens: _TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
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
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings, which end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(BaseModel):
    """A part of a message; only text is supported."""

    model_config = ConfigDict(extra='ignore', strict=True)

    type: Literal['text']
    text: str


class RequestMessage(BaseModel):
    """A message: one turn of a conversation."""

    model_config = ConfigDict(extra='ignore', strict=True)

    role: _Name
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)]

    def to_dict(self) -> dict[str, str]:
        """Return the message as a dict of `role` and `content`, with its parts joined."""
        parts = self.content
        text = parts if isinstance(parts, str) else ''.join(part.text for part in parts)
        return {'role': self.role, 'content': text}


class ChatRequest(BaseRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[
        list[RequestMessage], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: _TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: dict[Literal['type'], Literal['text']] | None = None
    store: bool | None = None

    @model_validator(mode='after')
    def check_logprobs(self) -> Self:
        """Check that `top_logprobs` comes with `logprobs`.

        Raises:
            ValueError: `top_logprobs` is set without `logprobs`.
        """
        if self.top_logprobs and not self.logprobs:
            raise ValueError('top_logprobs needs logprobs: true')
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum number of new tokens; None if the request does not set it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most probable tokens to report per position; None = no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(BaseRequest):
    """The body of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] = False
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        """Prompts as a list of texts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of new tokens, with OpenAI's default of 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of most probable tokens to report per position; None = no log-probabilities."""
        return self.logprobs


SomeRequest = TypeVar('SomeRequest', ChatRequest, CompletionRequest)


def parse(kind: type[SomeRequest], body: bytes) -> SomeRequest:
    """Parse and validate the body of a request.

    The JSON parser refuses nesting deeper than 200 levels, numbers of more than 4,300 digits, and
    unpaired surrogates.

    Args:
        kind: Type of the request.
        body: Body of the HTTP request, in JSON.

    Raises:
        ApiError: The body is not valid JSON, has too many fields or values, or has a field that
            is unknown, missing, of the wrong type or out of range.
    """
    _check_count(body)
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(422, f'The body is not valid JSON: {error}.') from error
    objects = {'The body': value} | (value if isinstance(value, dict) else {})
    for name, part in objects.items():
        if isinstance(part, dict) and len(part) > _MAX_FIELDS:
            raise ApiError(422, f'{name[:100]}: An object may have at most {_MAX_FIELDS} fields.')
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # A field that allows several types has one error for each type. Report the error of the
        # type that the value has, if there is one.
        first = min(errors, key=lambda each: each['type'].endswith('_type'))
        # Drop the names of allowed types, which Pydantic puts between the names of the fields.
        names = [str(p) for p in first['loc'] if isinstance(p, int) or p.isidentifier()]
        where, param = '.'.join(names)[:100], names[0][:100] if names else None
        raise ApiError(422, f'{where or "The body"}: {first["msg"]}.', param) from error


def _check_count(body: bytes) -> None:
    """Check the number of values in a body, much faster than parsing it.

    Raises:
        ApiError: The body has too many values.
    """
    # After escaped characters are removed, every second part between quotes is inside a string.
    parts = body.replace(b'\\\\', b'').replace(b'\\"', b'').split(b'"', 2 * _MAX_VALUES + 1)
    outside = b''.join(parts[::2])
    count = outside.count(b'{') + outside.count(b'[') + outside.count(b',')
    if max(count, len(parts) // 2) > _MAX_VALUES:
        raise ApiError(422, f'The body: A request may have at most {_MAX_VALUES:,} values.')
