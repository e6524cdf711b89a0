"""Requests as OpenAI's API has them: what is taken, and what is refused."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Of the alternatives that are told beside a token.
MOST_ALTERNATIVES = 20
_Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream holds besides."""

    model_config = ConfigDict(extra='forbid')

    include_usage: bool = False


class Common(BaseModel):
    """What both kinds of requests have.

    Fields that would change the text and are not implemented may have the value that changes
    nothing; those that cannot change it are taken and not looked at.
    """

    model_config = ConfigDict(extra='forbid')

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: int | None = None
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

    type: Literal['text']
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra='ignore')

    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """With its content as one text."""
        parts = self.content
        text = parts if isinstance(parts, str) else ''.join(part.text for part in parts)
        return {'role': self.role, 'content': text}


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
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

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
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
