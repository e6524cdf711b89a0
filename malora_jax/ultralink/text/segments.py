"""A text in segments of so many tokens, cut between lines; nothing of it is lost."""

import bisect
import re
from collections.abc import Callable, Iterator

Count = Callable[[str], int]

# Where a line that is too long alone may be cut, the best places first: after a sentence, after
# a word, anywhere.
_PLACES = (re.compile(r'(?<=[.!?…])(?=\s)|(?<=[。！？；])'), re.compile(r'(?=\s)'), re.compile(''))


def segments(text: str, most: int, count: Count) -> list[str]:
    """Cuts a text greedily by line; joined together, the segments are the text.

    A line that is too long alone is cut after as many of its sentences as fit; a sentence that is
    too long, between words; a word, between characters.

    Args:
        text: to be cut.
        most: a segment has fewer tokens, unless it is a single character.
        count: the tokens of a text.

    Returns:
        The segments, none of them empty; line breaks stay at their ends.
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
    """Appends a segment of the pieces at hand; what is left over is given back.

    Pieces together may have more tokens than apart, if seldom.
    """
    end = len(held)
    while end > 1 and count(''.join(piece for piece, _ in held[:end])) >= most:
        end -= 1
    found.append(''.join(piece for piece, _ in held[:end]))
    return held[end:]


def _pieces(line: str, most: int, count: Count) -> Iterator[tuple[str, int]]:
    """A line with its tokens, or pieces of it that are short enough."""
    while (tokens := count(line)) >= most and len(line) > 1:
        end = _end(line, most, count)
        yield line[:end], count(line[:end])
        line = line[end:]
    yield line, tokens


def _end(line: str, most: int, count: Count) -> int:
    """Where to cut a line: as far as fits, at the best kind of place that has one."""
    for pattern in _PLACES:
        ends = [place.start() for place in pattern.finditer(line) if 0 < place.start() < len(line)]
        fitting = bisect.bisect_left(ends, most, key=lambda end: count(line[:end]))
        if fitting:
            return ends[fitting - 1]
    return 1
