"""Scorers by name: how what the model says is compared with the right answer."""

import re
from collections.abc import Callable

from malora_jax.data.tasks import Example, exact_match


def choice(prediction: str, example: Example) -> float:
    """1.0 if prediction and answer begin with the same word, else 0.0.

    Case and what is no letter or digit do not count: 'B', '(b)' and 'B. Wet palms' are one choice,
    and so are 'Yes' and 'yes, because'. Not for numbers: of '3.5', the first word is '3'.
    """
    right = _first_word(example.answer)
    return float(right != '' and _first_word(prediction) == right)


SCORERS: dict[str, Callable[[str, Example], float]] = {
    'exact_match': exact_match,
    'choice': choice,
}


def _first_word(text: str) -> str:
    word = re.search(r'[^\W_]+', text)
    return word.group().casefold() if word else ''
