"""Similarity of two short texts: the Jaccard similarity of their character shingles."""

import re

# Number of letters and digits in a shingle. A Chinese question of 20 characters has 18 shingles.
_WIDTH = 3
_OTHER = re.compile(r'[\W_]+')


def shingles(text: str) -> frozenset[str]:
    """Return the set of all sequences of three consecutive letters or digits in a text.

    Case and all other characters are ignored. A text with fewer than three letters and digits gives
    a single, shorter shingle.
    """
    letters = _OTHER.sub('', text.lower())
    return frozenset(letters[i : i + _WIDTH] for i in range(max(1, len(letters) - _WIDTH + 1)))


def similarity(left: str, right: str) -> float:
    """Return the Jaccard similarity of the shingles of two texts, from 0 to 1."""
    ours, theirs = shingles(left), shingles(right)
    return len(ours & theirs) / len(ours | theirs)
