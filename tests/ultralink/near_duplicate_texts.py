"""Near-duplicate texts, made by edits of a share of the words, and their detection."""

import pathlib
import random
import re
from collections.abc import Sequence

from malora_jax.ultralink.text.near_duplicates import MinHashSketches

RATES = (0.05, 0.1, 0.2)


def near_duplicates(rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the ids of the near-duplicates among texts, each with the id of the kept text."""
    sketches = MinHashSketches()
    for key, text in rows:
        sketches.add(key, text)
    return sketches.near_duplicates()


def edit_text(
    text: str, rate: float, words: Sequence[str], separator: str, random_: random.Random
) -> str:
    """Return a text with a share of its words (characters if `separator` is empty) edited.

    Each edit removes a word, replaces it by one of `words`, or inserts one of them after it.
    """
    units = text.split(separator) if separator else list(text)
    changed: list[str] = []
    for unit in units:
        if random_.random() >= rate:
            changed.append(unit)
        else:
            other = random_.choice(words)
            changed += random_.choice(([], [other], [unit, other]))
    return separator.join(changed)


def measure_detection(
    texts: Sequence[str], language: str, edits: int
) -> dict[float, tuple[float, float]]:
    """Return recall and precision of near-duplicate detection for each rate of edits.

    Args:
        texts: Texts, no two of which are near-duplicates.
        language: Language of the texts.
        edits: Number of texts of which an edited copy is added.
    """
    by = '' if language == 'zh' else ' '
    words = [unit for text in texts for unit in (text.split(by) if by else text)]
    found = {}
    for rate in RATES:
        random_ = random.Random(f'{language}/{rate}')
        chosen = random_.sample(range(len(texts)), edits)
        rows = [(f'{language}_{n}', text) for n, text in enumerate(texts)]
        made = {
            f'{language}_{len(texts) + n}': (f'{language}_{at}', texts[at])
            for n, at in enumerate(chosen)
        }
        rows += [
            (key, edit_text(text, rate, words, by, random_)) for key, (_, text) in made.items()
        ]
        random_.shuffle(rows)
        duplicates = near_duplicates(rows)
        right = sum(made.get(key, ('',))[0] == other for key, other in duplicates.items())
        found[rate] = right / edits, right / max(1, len(duplicates))
    return found


def main(path: str, language: str) -> None:
    """Print the results for the texts of a file, one per line up to the first tab."""
    lines = pathlib.Path(path).read_text('utf-8').splitlines()
    texts = [re.sub(r'\t.*', '', line) for line in lines]
    for rate, (recall, precision) in measure_detection(texts, language, len(texts) // 2).items():
        print(f'{language}, {rate:.0%} of {len(texts):,} texts: {recall=:.3f} {precision=:.3f}')


if __name__ == '__main__':
    import sys

    main(*sys.argv[1:])
