"""What is asked of a language model, and what it answers."""

import dataclasses
import functools
import hashlib
import json
from typing import NamedTuple, Protocol

from malora_jax.ultralink import settings


class Message(NamedTuple):
    """A part of a chat.

    Attributes:
        role: 'system', 'user' or 'assistant'.
        content: its text.
    """

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is sampled."""

    max_tokens: int = settings.setting('Maximum number of tokens of an answer.', 1024, at_least=1)
    temperature: float = settings.temperature_setting(1.0)
    top_p: float = settings.top_p_setting(1.0)
    seed: int = settings.setting('Random seed; another seed changes all answers.', 0)

    def __post_init__(self):
        settings.check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Request:
    """A chat that is to be continued.

    Attributes:
        stage: that asks.
        messages: of the chat; the last is the user's.
        sampling: how the answer is drawn.
        sample: which of several answers to the same messages; 0 = the first.
    """

    stage: str
    messages: tuple[Message, ...]
    sampling: Sampling
    sample: int = 0

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything in it."""
        text = json.dumps(dataclasses.astuple(self), ensure_ascii=False)
        return hashlib.sha256(text.encode()).digest()

    @property
    def draw(self) -> int:
        """The seed of this answer alone, of 31 bits; the same in every run."""
        return int.from_bytes(self.digest[:4], 'big') >> 1


class Reply(NamedTuple):
    """An answer.

    Attributes:
        text: without white space around it.
        finish_reason: 'stop'; 'length' for one that is cut short; 'content_filter'; 'refused' for
            messages that the model cannot take; 'malformed' for an answer without a text.
        tokens: of the messages and the answer together.
    """

    text: str
    finish_reason: str
    tokens: int


class Model(Protocol):
    """A language model.

    Attributes:
        name: what its answers depend on.
    """

    name: str

    async def complete(self, request: Request) -> Reply:
        """The answer to a request.

        Raises:
            UserError: a mistake of the user's, or no more tokens may be spent.
            OSError: the model cannot answer.
        """
        ...
