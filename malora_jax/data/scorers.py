"""Scorers by name: how what the model says is compared with the right answer."""

import itertools
import unicodedata
from collections.abc import Callable

from malora_jax.data.tasks import Example, exact_match


def choice(prediction: str, example: Example) -> float:
    """1.0 if prediction and answer begin with the same word, else 0.0.

    Case and what is no letter or digit do not count: 'B', '(b)' and 'B. Wet palms' are one choice,
    and so are 'Yes' and 'yes, because'. Not for numbers and code: of '-3.5' and 'C++', the first
    words are '3' and 'C'.
    """
    right = _first_word(example.answer)
    return float(right != '' and _first_word(prediction) == right)


SCORERS: dict[str, Callable[[str, Example], float]] = {
    'exact_match': exact_match,
    'choice': choice,
}


def _first_word(text: str) -> str:
    start = itertools.dropwhile(lambda character: not character.isalnum(), text)
    return ''.join(itertools.takewhile(_is_of_a_word, start)).casefold()


def _is_of_a_word(character: str) -> bool:
    """Letters, digits, and the marks on them, such as the vowel signs of Hindi and Thai."""
    return unicodedata.category(character)[0] in 'LNM'
