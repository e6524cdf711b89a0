"""Handwritten translations into each language that keep all numbers, formulas and code."""

from typing import NamedTuple

from tests.helpers.openai_stub import texts


class TranslatedText(NamedTuple):
    """A text in English and its translations by language."""

    english: str
    translations: dict[str, str]


def _translated(name: str, english: str) -> TranslatedText:
    """Return a text with its translations in the fixture of texts."""
    given = {code: each['translations'] for code, each in texts().items() if code != 'en'}
    return TranslatedText(english, {code: each[name] for code, each in given.items()})


MATHS = _translated(
    'maths',
    'Josh buys a house for $80,000 and puts in $50,000.50 of repairs; the value grows by 150%. '
    'He works on it for three weeks. How much profit is made?\n'
    'The house cost 80,000+50,000.50=<<80000+50000.50=130000.50>>130,000.50 dollars.\n'
    '#### 1,102',
)
LATEX = _translated(
    'latex',
    r'Solve $x^2 = 9$ for positive $x$, where \[y = \frac{1}{2}\text{ if it exists}\] holds for '
    r'every number. The positive solution of this equation is \boxed{3}.',
)
_BLOCK = '```python\ndef add_two(n):\n    # Two more.\n    return n + 2  # 2\n```'
CODE = _translated(
    'code',
    f'The function `add_two` adds a number to its argument and returns the sum:\n\n{_BLOCK}\n\n'
    'Call add_two() with any number, and never change sys.max_size while it runs.',
)

ALL = {'maths': MATHS, 'latex': LATEX, 'code': CODE}
