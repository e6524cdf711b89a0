"""Parsers of instruction datasets: an instruction and one answer to train on."""

from collections.abc import Callable

from malora_jax.data.benchmarks import fields
from malora_jax.data.benchmarks.item import Item
from malora_jax.data.rows import Row


def pair(question: str, answer: str) -> Callable[[Row], Item]:
    """Return a parser of rows with a question and an answer.

    The parser raises `BrokenRowError` for a row that cannot be used.

    Args:
        question: Name of the field with the question.
        answer: Name of the field with the answer.
    """

    def parse(row: Row) -> Item:
        return Item(fields.text(row, question), answers=(fields.text(row, answer),))

    return parse


def alpaca(row: Row) -> Item:
    """Parse `instruction`, `input`, which may be empty, and `output` of an Alpaca row.

    The input follows the instruction after a line break. The field `text` of some versions is
    ignored, because it only repeats the others within a template.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    parts = [fields.text(row, 'instruction'), fields.optional_text(row, 'input')]
    return Item('\n'.join(filter(None, parts)), answers=(fields.text(row, 'output'),))
