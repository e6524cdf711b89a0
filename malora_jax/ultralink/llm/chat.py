"""Chat requests to a language model, its replies, and `ChatModel`, the interface of a model."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from malora_jax.ultralink import settings
from malora_jax.ultralink.llm.usage import TokenUsage


class ChatMessage(NamedTuple):
    """A message of a chat.

    Attributes:
        role: 'system', 'user' or 'assistant'.
        content: Text of the message.
    """

    role: str
    content: str


def chat_text(messages: Iterable[ChatMessage]) -> str:
    """Return the contents of messages as one text, whose tokens are those of the chat."""
    return '\n'.join(message.content for message in messages)


@dataclasses.dataclass(frozen=True)
class ChatSampling:
    """Sampling parameters of a request."""

    max_tokens: int = settings.setting('Maximum number of tokens of a reply.', 1024, at_least=1)
    temperature: float = settings.temperature_setting(1.0)
    top_p: float = settings.top_p_setting(1.0)
    seed: int = settings.setting('Random seed; another seed changes all replies.', 0)

    def __post_init__(self):
        settings.check_ranges(self)


@dataclasses.dataclass(frozen=True)
class ModelRequest:
    """A request to a model to write the next message of a chat.

    Attributes:
        stage: Name of the stage that makes the request.
        messages: Messages of the chat; the last one is from the user.
        sampling: Sampling parameters.
        sample_index: Index of the reply among several replies to the same messages, from 0.
    """

    stage: str
    messages: tuple[ChatMessage, ...]
    sampling: ChatSampling
    sample_index: int = 0

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 digest of all fields."""
        text = json.dumps(dataclasses.astuple(self), ensure_ascii=False)
        return hashlib.sha256(text.encode()).digest()

    @property
    def sampling_seed(self) -> int:
        """Random seed of this reply, below 2**31; the digest determines it."""
        return int.from_bytes(self.digest[:4], 'big') >> 1


@dataclasses.dataclass(frozen=True)
class Reply:
    """The reply of a model.

    Attributes:
        text: Reply text, without surrounding white space and without <think> sections.
        finish_reason: 'stop'; 'length' for a truncated reply; 'content_filter'; 'refused' for
            messages that the model does not accept; 'malformed' for a response without text.
        tokens: Number of tokens of the messages and the reply together, including those of paid
            responses that could not be read, so that the request was repeated.
        usage: Numbers of prompt, completion and cached tokens, which add up to `tokens`; zeros if
            the model does not report them.
    """

    text: str
    finish_reason: str
    tokens: int
    usage: TokenUsage = dataclasses.field(default=TokenUsage(), compare=False)

    @property
    def is_cacheable(self) -> bool:
        """True if the cache may keep the reply.

        A response without text and without tokens may be an error of a gateway.
        """
        return self.finish_reason != 'malformed' or self.tokens > 0


class ChatModel(Protocol):
    """Interface of a language model (a `typing.Protocol`).

    Attributes:
        name: Name that identifies the model in cache keys and manifests; models that reply
            differently must have different names.
    """

    name: str

    async def complete(self, request: ModelRequest) -> Reply:
        """Return the reply to a request.

        Raises:
            UserError: The model rejects the request, or the request may exceed the token limit.
            OSError: The model fails or cannot be reached.
        """
        ...
