"""Tokens as the text that they grow into: where it ends, and what of it can be shown already.

A token may hold part of a character, and part of a text that ends the answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from malora_jax import errors

# What bytes that are no character yet are decoded to.
_INCOMPLETE = '\ufffd'
# Tokens that are decoded again with the next ones, and how many may pile up before they become so
# few again. A character spans at most four tokens; what is none after so many never becomes one.
_CONTEXT, _FULL, _HOPELESS = 8, 16, 64


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
    """The text of an answer, piece by piece as its tokens come.

    The time for all pieces is linear in the number of tokens, whatever the length of the stops.

    Attributes:
        is_over: Whether the text has come to its end.
    """

    def __init__(self, ending: Ending):
        self.is_over = False
        self._ends = ending.ids
        self._characters = _CharacterStream(ending.tokenizer)
        self._stops = [_PrefixMatch(stop) for stop in ending.stop]
        self._held = ''  # The end of the text, as far as it may be the beginning of a stop.

    def add(self, ids: Sequence[int]) -> str:
        """Return what can be shown now.

        Incomplete characters, and text that may become a stop, are held back.
        """
        if self.is_over:
            return ''
        count = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        piece = self._match(self._characters.add(ids[:count]))
        if count < len(ids) and not self.is_over:
            piece += self.rest()
            self.is_over = True
        return piece

    def rest(self) -> str:
        """Return what was held back, when no more tokens come."""
        if self.is_over:
            return ''
        piece = self._match(self._characters.rest())
        rest, self._held = self._held, ''
        return piece + rest

    def _match(self, text: str) -> str:
        """Return the text, after what was held back of it and up to a possible stop."""
        before, self._held = len(self._held), self._held + text
        for place, character in enumerate(text, start=before + 1):
            # Of stops that are complete at the same place, the longest one begins first.
            complete = [len(stop.text) for stop in self._stops if stop.add(character)]
            if complete:
                self.is_over = True
                piece, self._held = self._held[: place - max(complete)], ''
                return piece
        end = len(self._held) - max((stop.length for stop in self._stops), default=0)
        piece, self._held = self._held[:end], self._held[end:]
        return piece


class _CharacterStream:
    """Decodes tokens as they come; only the last few are decoded again."""

    def __init__(self, tokenizer: TextDecoder):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # Characters of the text of these tokens.

    def add(self, ids: Sequence[int]) -> str:
        """Return the new text up to its last complete character."""
        self._ids += ids
        text = self._decode(self._ids)
        is_hopeless = len(self._ids) > _HOPELESS
        complete = len(text) if is_hopeless else len(text.rstrip(_INCOMPLETE))
        piece, self._shown = text[self._shown : complete], max(self._shown, complete)
        if len(self._ids) > _FULL and complete == len(text):
            self._shorten(text, is_hopeless)
        return piece

    def rest(self) -> str:
        """Return what was held back, when no more tokens come."""
        return self._decode(self._ids)[self._shown :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, continues=True)

    def _shorten(self, text: str, is_hopeless: bool) -> None:
        """Forget the first tokens, if the others are decoded without them as they were with them.

        Between two tokens of one character they are not.
        """
        most = len(self._ids) - _CONTEXT
        for start in range(most, most - 4, -1):
            kept = self._decode(self._ids[start:])
            if text.endswith(kept):
                del self._ids[:start]
                self._shown = len(kept)
                return
        if is_hopeless:
            self._ids, self._shown = [], 0


class _PrefixMatch:
    """The longest prefix of a stop that a text ends with (Knuth, Morris and Pratt 1977).

    The table grows with the match, so that a long stop that hardly ever matches costs nothing.

    Attributes:
        text: The stop.
        length: Number of its characters that match.
    """

    def __init__(self, text: str):
        self.text = text
        self.length = 0
        # By length of a prefix of the stop: the longest shorter prefix that it ends with.
        self._shorter = [0, 0]

    def add(self, character: str) -> bool:
        """Add a character to the text; return whether the stop is complete."""
        self.length = self._next(self.length, character)
        if self.length == len(self._shorter):
            self._shorter.append(self._next(self._shorter[-1], character))
        return self.length == len(self.text)

    def _next(self, length: int, character: str) -> int:
        while length and self.text[length] != character:
            length = self._shorter[length]
        return length + (self.text[length] == character)
