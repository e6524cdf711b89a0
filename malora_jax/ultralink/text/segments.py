"""Segmentation of a text by number of tokens, preferably between lines, without losing any text."""

import bisect
import re
from collections.abc import Callable, Iterator

# Function that returns the number of tokens of a text.
CountTokens = Callable[[str], int]

# Boundaries at which a line that is too long may be split, in order of preference: after a
# sentence, after a word, anywhere.
_BOUNDARIES = (
    re.compile(r'(?<=[.!?…])(?=\s)|(?<=[。！？；])'),
    re.compile(r'(?=\s)'),
    re.compile(''),
)


def segments(text: str, token_limit: int, count_tokens: CountTokens) -> list[str]:
    """Split a text greedily into segments of whole lines; joined, the segments are the text again.

    A line that is too long on its own is split after as many sentences as fit, a sentence that is
    too long is split between words, and a word between characters.

    Example:
        segments(text, 2000, load_token_counter('llama2-13b'))

    Args:
        text: Text to split.
        token_limit: Number of tokens that a segment stays below, unless it is a single character.
        count_tokens: Function that returns the number of tokens of a text.

    Returns:
        Segments, none of them empty, which keep the line breaks at their ends.
    """
    finished: list[str] = []
    pending: list[tuple[str, int]] = []
    for line in text.splitlines(keepends=True):
        for piece, tokens in _pieces(line, token_limit, count_tokens):
            if pending and tokens + sum(number for _, number in pending) >= token_limit:
                pending = _cut(finished, pending, token_limit, count_tokens)
            pending.append((piece, tokens))
    while pending:
        pending = _cut(finished, pending, token_limit, count_tokens)
    return finished


def _cut(
    finished: list[str], pending: list[tuple[str, int]], token_limit: int, count_tokens: CountTokens
) -> list[tuple[str, int]]:
    """Append one segment made of pending pieces, and return the remaining pieces.

    The tokens of the joined pieces are counted again, because they may, rarely, be more than the
    sum of the counts of the pieces.
    """
    end = len(pending)
    while end > 1 and count_tokens(''.join(piece for piece, _ in pending[:end])) >= token_limit:
        end -= 1
    finished.append(''.join(piece for piece, _ in pending[:end]))
    return pending[end:]


def _pieces(line: str, token_limit: int, count_tokens: CountTokens) -> Iterator[tuple[str, int]]:
    """Yield a line, or pieces of it that are short enough, each with its number of tokens."""
    while (tokens := count_tokens(line)) >= token_limit and len(line) > 1:
        end = _end(line, token_limit, count_tokens)
        yield line[:end], count_tokens(line[:end])
        line = line[end:]
    yield line, tokens


def _end(line: str, token_limit: int, count_tokens: CountTokens) -> int:
    """Return the index at which to split a line, so that its first part is below the limit.

    The index is at the last sentence end that fits; if there is none, at the last word end that
    fits; otherwise, after the last character that fits.
    """
    for pattern in _BOUNDARIES:
        ends = [match.start() for match in pattern.finditer(line) if 0 < match.start() < len(line)]
        fitting = bisect.bisect_left(ends, token_limit, key=lambda end: count_tokens(line[:end]))
        if fitting:
            return ends[fitting - 1]
    return 1
