"""How alike two short texts are, by the letters that they share."""

import re

# Letters and digits of a shingle; a Chinese question of 20 characters has 18.
_WIDTH = 3
_OTHER = re.compile(r'[\W_]+')


def shingles(text: str) -> frozenset[str]:
    """All runs of three letters and digits, whatever their case and what stands between."""
    letters = _OTHER.sub('', text.lower())
    return frozenset(letters[i : i + _WIDTH] for i in range(max(1, len(letters) - _WIDTH + 1)))


def similarity(left: str, right: str) -> float:
    """The Jaccard similarity of their shingles, from 0 to 1."""
    ours, theirs = shingles(left), shingles(right)
    return len(ours & theirs) / len(ours | theirs)
