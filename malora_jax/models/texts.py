"""Tokens as the text that they grow into: where it ends, and what of it can be shown already.

A token may hold part of a character, and part of a text that ends the answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from malora_jax import errors

# What bytes that are no character yet are decoded to.
_INCOMPLETE = '\ufffd'


class TextDecoder(Protocol):
    """What generation needs of a tokenizer."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """The text of some tokens, without special tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The token written so, or None."""
        ...


@dataclasses.dataclass
class Ending:
    """Where a text ends before its end token.

    Attributes:
        tokenizer: of the model.
        stop: texts that end it; those that are special tokens as tokens.
    """

    tokenizer: TextDecoder
    stop: tuple[str, ...]

    def __post_init__(self):
        if '' in self.stop:
            raise errors.out_of_range('stop', self.stop, 'texts that are not empty')
        # Special tokens are not in the text.
        self.ids = {self.tokenizer.token_to_id(text) for text in self.stop} - {None}

    def is_met(self, ids: list[int]) -> bool:
        """Whether the text has come to its end."""
        text = self.tokenizer.decode(ids, continues=True)
        return not self.ids.isdisjoint(ids) or any(stop in text for stop in self.stop)

    def text(self, ids: list[int]) -> str:
        """The text up to its end: what ends it is the stop that is complete first."""
        count = next((i for i, token in enumerate(ids) if token in self.ids), len(ids))
        text = self.tokenizer.decode(ids[:count], continues=True)
        found = [(text.index(stop), stop) for stop in self.stop if stop in text]
        ends = [(start + len(stop), start) for start, stop in found]
        return text[: min(ends)[1]] if ends else text


class TextStream:
    """A text piece by piece, as its tokens come.

    Attributes:
        ids: the tokens so far.
        is_over: whether the text has come to its end.
    """

    def __init__(self, ending: Ending):
        self.ids: list[int] = []
        self.is_over = False
        self._ending = ending
        self._shown = 0

    def add(self, ids: Sequence[int]) -> str:
        """What can be shown now: not what may still become another character, or the end."""
        self.ids += ids
        self.is_over = self._ending.is_met(self.ids)
        if self.is_over:
            return self.rest()
        text = self._ending.text(self.ids)
        complete = text.rstrip(_INCOMPLETE)
        held = max((_overlap(complete, stop) for stop in self._ending.stop), default=0)
        return self._show(complete[: len(complete) - held])

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        return self._show(self._ending.text(self.ids))

    def _show(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def _overlap(text: str, stop: str) -> int:
    """How much at the end of a text may be the beginning of another."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
