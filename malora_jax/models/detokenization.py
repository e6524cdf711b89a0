"""Incremental detokenization (streaming) and stop strings.

A token may contain only part of a character, or part of a stop string. Such text is held back until
later tokens show whether it is part of the answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from malora_jax import errors

# Character to which decoders map bytes that are not a complete UTF-8 character.
_INCOMPLETE = '\ufffd'
# _CharacterStream decodes a window of the latest tokens. Once the window has more than _MAX_WINDOW
# tokens, it is shortened to about _MIN_WINDOW. A character spans at most four tokens, so bytes that
# are still incomplete after _MAX_INCOMPLETE tokens never become a character.
_MIN_WINDOW, _MAX_WINDOW, _MAX_INCOMPLETE = 8, 16, 64


class Detokenizer(Protocol):
    """Protocol of the tokenizer methods that generation needs."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """Return the text of token ids, without special tokens.

        Args:
            ids: Token ids.
            continues: Whether the text follows another text, so that a leading space is kept.
        """
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token given by its text, or None if there is no such token."""
        ...


@dataclasses.dataclass
class StopCondition:
    """Stop condition of an answer: stop strings and stop tokens.

    Attributes:
        tokenizer: Tokenizer of the model.
        stop: Stop strings. They may be special tokens such as '<|im_end|>'.
        stop_ids: Ids of the stop tokens. If a stop string is an entry of the vocabulary, its token
            is a stop token.

    Raises:
        UserError: A stop string is empty.
    """

    tokenizer: Detokenizer
    stop: tuple[str, ...]

    def __post_init__(self):
        if '' in self.stop:
            raise errors.out_of_range('stop', self.stop, 'a list of non-empty strings')
        # Decoded text leaves out special tokens, so they are found by id.
        self.stop_ids = {self.tokenizer.token_to_id(text) for text in self.stop} - {None}

    def is_met(self, ids: list[int]) -> bool:
        """Return whether an answer contains a stop string or stop token."""
        text = self.tokenizer.decode(ids, continues=True)
        return not self.stop_ids.isdisjoint(ids) or any(stop in text for stop in self.stop)

    def text(self, ids: list[int]) -> str:
        """Return an answer's text up to its first stop token or first completed stop string."""
        count = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(ids[:count], continues=True)
        matches = [(text.index(stop), stop) for stop in self.stop if stop in text]
        ends = [(start + len(stop), start) for start, stop in matches]
        return text[: min(ends)[1]] if ends else text


class TextStream:
    """Incremental detokenizer of an answer, which ends the text at a stop string or stop token.

    The total time is linear in the number of tokens, whatever the length of the stop strings.

    Attributes:
        is_over: Whether a stop string or stop token was found.
    """

    def __init__(self, condition: StopCondition):
        self.is_over = False
        self._stop_ids = condition.stop_ids
        self._characters = _CharacterStream(condition.tokenizer)
        self._stops = [_PrefixMatch(stop) for stop in condition.stop]
        self._held = ''  # End of the text that may be the start of a stop string.

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens, and return the new text that is final.

        Incomplete characters, and text that may become a stop string, are held back.
        """
        if self.is_over:
            return ''
        count = next((i for i, token in enumerate(ids) if token in self._stop_ids), len(ids))
        piece = self._match(self._characters.add(ids[:count]))
        if count < len(ids) and not self.is_over:
            piece += self.flush()
            self.is_over = True
        return piece

    def flush(self) -> str:
        """Return the text that is still held back; call this after the last token."""
        if self.is_over:
            return ''
        piece = self._match(self._characters.flush())
        rest, self._held = self._held, ''
        return piece + rest

    def _match(self, text: str) -> str:
        """Append text to the held-back text, and return the part that is final.

        The end of the text is still held back if it may be the start of a stop string. If a stop
        string is complete, the text before it is returned, and the answer is over.
        """
        before, self._held = len(self._held), self._held + text
        for position, character in enumerate(text, start=before + 1):
            # If several stop strings end at this character, the longest one starts first.
            complete = [len(stop.text) for stop in self._stops if stop.add(character)]
            if complete:
                self.is_over = True
                piece, self._held = self._held[: position - max(complete)], ''
                return piece
        end = len(self._held) - max((stop.length for stop in self._stops), default=0)
        piece, self._held = self._held[:end], self._held[end:]
        return piece


class _CharacterStream:
    """Incremental detokenizer of complete characters, which decodes a window of the latest tokens.

    Its time per token thus does not depend on the length of the answer.
    """

    def __init__(self, tokenizer: Detokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._returned = 0  # Number of characters of the window's text already returned.

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens, and return the new text up to its last complete character."""
        self._ids += ids
        text = self._decode(self._ids)
        is_hopeless = len(self._ids) > _MAX_INCOMPLETE
        complete = len(text) if is_hopeless else len(text.rstrip(_INCOMPLETE))
        piece, self._returned = text[self._returned : complete], max(self._returned, complete)
        if len(self._ids) > _MAX_WINDOW and complete == len(text):
            self._shorten(text, is_hopeless)
        return piece

    def flush(self) -> str:
        """Return the text that is still held back; call this after the last token."""
        return self._decode(self._ids)[self._returned :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, continues=True)

    def _shorten(self, text: str, is_hopeless: bool) -> None:
        """Drop the first tokens of the window, unless this would change the text of the rest.

        The text of the remaining tokens changes if the last dropped token and the first remaining
        token form one character. The method therefore tries to drop different numbers of tokens.

        Args:
            text: Text of the window.
            is_hopeless: Whether the window is so long that its incomplete characters will never be
                complete. It matters only if each number of tokens would change the text: then all
                tokens are dropped if it is True, and none if it is False.
        """
        last_start = len(self._ids) - _MIN_WINDOW
        for start in range(last_start, last_start - 4, -1):
            suffix = self._decode(self._ids[start:])
            if text.endswith(suffix):
                del self._ids[:start]
                self._returned = len(suffix)
                return
        if is_hopeless:
            self._ids, self._returned = [], 0


class _PrefixMatch:
    """Incremental search for a stop string in a growing text (Knuth, Morris, Pratt 1977).

    The text may end with the start of the stop string. The attribute `length` counts these
    characters, and is updated with each new character. The failure table of the algorithm is
    computed only as far as the text has matched. A long stop string of which only a few characters
    ever match therefore costs little.

    Attributes:
        text: The stop string.
        length: Largest n for which the text ends with the first n characters of the stop string.
    """

    def __init__(self, text: str):
        self.text = text
        self.length = 0
        # Failure table: for each prefix of the stop string, by its length, the length of the
        # longest shorter prefix that it ends with.
        self._failure = [0, 0]

    def add(self, character: str) -> bool:
        """Add a character to the text; return whether the stop string is complete."""
        self.length = self._next(self.length, character)
        if self.length == len(self._failure):
            self._failure.append(self._next(self._failure[-1], character))
        return self.length == len(self.text)

    def _next(self, length: int, character: str) -> int:
        while length and self.text[length] != character:
            length = self._failure[length]
        return length + (self.text[length] == character)
