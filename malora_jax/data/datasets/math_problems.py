"""Parsers of mathematical word problems: AQuA, SVAMP, and the files of LLM-Adapters."""

import re

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item, choice_item
from malora_jax.data.file_rows import Row

_LETTERS = 'ABCDE'


def parse_aqua(row: Row) -> Item:
    """Parse `question`, `options` such as 'B)65', and `correct`, the letter of the right one.

    The rationale is not used, because it often argues for another option.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    options = []
    for letter, option in zip(_LETTERS, fields.raw_texts(row, 'options'), strict=False):
        # A row of the test split repeats the letters: 'A)A)59'.
        match = re.fullmatch(rf'(?:{letter}\))+(.*)', option, re.DOTALL)
        if not match or not match[1].strip():
            raise BrokenRowError(
                f"{row.location}: an option is {option[:60]!r}; it must begin with '{letter})' and "
                'a text must follow.'
            )
        options.append(match[1].strip())
    correct = fields.text(row, 'correct')
    if correct not in _LETTERS[: len(options)]:
        raise BrokenRowError(
            f"{row.location}: field 'correct' is {correct!r}; it must be the letter of an option."
        )
    label = _LETTERS.index(correct)
    return choice_item(
        row.location, fields.text(row, 'question'), options, label, is_distinct=False
    )


def parse_svamp(row: Row) -> Item:
    """Parse `Body`, `Question`, and the number `Answer`.

    The body and the question are joined as in LLM-Adapters: with a period, unless the body ends
    with one.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    body, question = fields.text(row, 'Body'), fields.text(row, 'Question')
    period = '' if body.endswith('.') else '.'
    return Item(f'{body}{period} {question}', answers=(fields.number(row, 'Answer'),))


def parse_numbered(row: Row) -> Item:
    """Parse a test row of LLM-Adapters: `instruction` and the number `answer`.

    The field `output` is ignored. It has the answer of a language model, which is sometimes wrong.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    return Item(fields.raw_text(row, 'instruction'), answers=(fields.number(row, 'answer'),))


def parse_solved(row: Row) -> Item:
    """Parse a training row of LLM-Adapters: `instruction` and the worked solution `output`.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    return Item(fields.raw_text(row, 'instruction'), answers=(fields.raw_text(row, 'output'),))
