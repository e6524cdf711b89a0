"""Segmentation of a text by number of tokens, preferably between lines, without losing any text."""

import bisect
import re
from collections.abc import Callable, Iterator

Count = Callable[[str], int]

# Boundaries at which a line that is too long may be split, in order of preference: after a
# sentence, after a word, anywhere.
_PLACES = (re.compile(r'(?<=[.!?…])(?=\s)|(?<=[。！？；])'), re.compile(r'(?=\s)'), re.compile(''))


def segments(text: str, most: int, count: Count) -> list[str]:
    """Split a text greedily into segments of whole lines; joined, the segments are the text again.

    A line that is too long on its own is split after as many sentences as fit, a sentence that is
    too long is split between words, and a word between characters.

    Example:
        segments(text, 2000, counter('llama2-13b'))

    Args:
        text: Text to split.
        most: Number of tokens that a segment stays below, unless it is a single character.
        count: Function that returns the number of tokens of a text.

    Returns:
        Segments, none of them empty, which keep the line breaks at their ends.
    """
    found: list[str] = []
    held: list[tuple[str, int]] = []
    for line in text.splitlines(keepends=True):
        for piece, tokens in _pieces(line, most, count):
            if held and tokens + sum(number for _, number in held) >= most:
                held = _cut(found, held, most, count)
            held.append((piece, tokens))
    while held:
        held = _cut(found, held, most, count)
    return found


def _cut(
    found: list[str], held: list[tuple[str, int]], most: int, count: Count
) -> list[tuple[str, int]]:
    """Append one segment of the held pieces, and return the pieces that are left over.

    Joined pieces may, rarely, have more tokens than the sum of the pieces.
    """
    end = len(held)
    while end > 1 and count(''.join(piece for piece, _ in held[:end])) >= most:
        end -= 1
    found.append(''.join(piece for piece, _ in held[:end]))
    return held[end:]


def _pieces(line: str, most: int, count: Count) -> Iterator[tuple[str, int]]:
    """Yield a line, or pieces of it that are short enough, each with its number of tokens."""
    while (tokens := count(line)) >= most and len(line) > 1:
        end = _end(line, most, count)
        yield line[:end], count(line[:end])
        line = line[end:]
    yield line, tokens


def _end(line: str, most: int, count: Count) -> int:
    """Return where to split a line: as late as possible, at the best kind of boundary that fits."""
    for pattern in _PLACES:
        ends = [place.start() for place in pattern.finditer(line) if 0 < place.start() < len(line)]
        fitting = bisect.bisect_left(ends, most, key=lambda end: count(line[:end]))
        if fitting:
            return ends[fitting - 1]
    return 1
