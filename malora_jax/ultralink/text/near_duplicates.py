"""Near-duplicate detection: Jaccard similarity of word shingles, by MinHash and LSH (datasketch).

A shingle is two consecutive words. Case, punctuation and spaces are ignored, and a Chinese
character is a word, because Chinese has no spaces. Two texts are near-duplicates if the estimated
Jaccard similarity of their sets of shingles is at least a threshold. If 5, 10 or 20% of the words
of a GSM8K question are replaced, removed or inserted, the similarity to the original is 0.85, 0.72
or 0.53 on average. The similarity of a question to the nearest of 1,500 others is at most 0.09 for
half of the questions, and at most 0.23 for 99% of them.

The hashes are seeded, so that the same texts and version of datasketch give the same result
everywhere.
"""

import itertools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from malora_jax.errors import out_of_range
from malora_jax.ultralink.optional_imports import import_extra

# Default threshold of the similarity.
THRESHOLD = 0.35
# LSH compares two texts if at least one of 42 bands of three hashes is the same. The probability is
# 84%, 99.6% and 0.5% for texts of similarity 0.35, 0.5 and 0.05.
_BANDS, _ROWS = 42, 3
_PERMUTATIONS, _SEED = 128, 1
_WORD = re.compile(r'[\u3400-\u9fff]|[^\W\u3400-\u9fff]+')


class MinHashSketches:
    """MinHash sketches of texts, half a kilobyte each.

    Example:
        sketches = MinHashSketches()
        sketches.add('a', 'one two three four')
        sketches.add('b', 'One, two, three, four!')
        sketches.near_duplicates()  # {'b': 'a'}
    """

    def __init__(self):
        """Create an empty collection.

        Raises:
            UserError: The extra `ultralink` is not installed.
        """
        self._datasketch = import_extra('datasketch')
        self._sketches: dict[str, Any] = {}

    def add(self, key: str, text: str) -> None:
        """Store the sketch of a text; a text without words is never a near-duplicate.

        Args:
            key: Id of the text, not added before.
            text: Text to sketch.
        """
        shingles = _shingles(text)
        if shingles:
            sketch = self._datasketch.MinHash(_PERMUTATIONS, seed=_SEED)
            sketch.update_batch(shingles)
            self._sketches[key] = sketch

    def near_duplicates(self, threshold: float = THRESHOLD) -> dict[str, str]:
        """Find the near-duplicates to remove.

        Texts are examined in the order of `natural_sort_key`. Each text is compared only with the
        earlier texts that are kept, so that no text is removed because it resembles a removed text.
        During the call, the LSH index takes about 12 KB of memory per text.

        Args:
            threshold: Minimum Jaccard similarity of near-duplicates, above 0 and at most 1.

        Returns:
            Dict from the id of each near-duplicate to the id of the most similar kept text.

        Raises:
            UserError: The threshold is out of range.
        """
        if not 0 < threshold <= 1:
            raise out_of_range('min_similarity', threshold, 'above 0 and at most 1')
        index = self._datasketch.MinHashLSH(num_perm=_PERMUTATIONS, params=(_BANDS, _ROWS))
        duplicates = {}
        for key in sorted(self._sketches, key=natural_sort_key):
            sketch = self._sketches[key]
            similarity, nearest = self._nearest(sketch, index.query(sketch))
            if similarity >= threshold:
                duplicates[key] = nearest
            else:
                index.insert(key, sketch)
        return duplicates

    def _nearest(self, sketch: Any, keys: Iterable[str]) -> tuple[float, str]:
        """Return the largest similarity to other texts, and the id of the most similar text.

        If several texts are equally similar, the id is the first one in the order of
        `natural_sort_key`.

        Args:
            sketch: MinHash of a text.
            keys: Ids of the texts to compare with; if there are none, the result is (0.0, '').
        """
        keys = sorted(keys, key=natural_sort_key)
        if not keys:
            return 0.0, ''
        hashes = np.array([self._sketches[key].hashvalues for key in keys])
        similarities = (hashes == sketch.hashvalues).mean(axis=1)
        return float(similarities.max()), keys[int(similarities.argmax())]


def natural_sort_key(key: str) -> list[tuple[str, int]]:
    """Return a sort key that compares the numbers in ids by value: zh_math_9 before zh_math_10."""
    parts = re.split(r'(\d+)', key)
    numbers = [*map(int, parts[1::2]), -1]
    return list(zip(parts[::2], numbers, strict=True))


def _shingles(text: str) -> set[bytes]:
    words = _WORD.findall(text.lower())
    pairs = itertools.pairwise(words) if len(words) > 1 else [tuple(words)]
    return {' '.join(pair).encode() for pair in pairs if pair}
