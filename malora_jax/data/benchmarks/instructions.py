"""Rows with an instruction and one answer to train on."""

from collections.abc import Callable

from malora_jax.data.benchmarks import fields
from malora_jax.data.benchmarks.item import Item
from malora_jax.data.rows import Row


def pair(question: str, answer: str) -> Callable[[Row], Item]:
    """The parser of rows with a question and its answer, by the names of these fields.

    It raises `BrokenRowError` for a row that cannot be used.
    """

    def parse(row: Row) -> Item:
        return Item(fields.text(row, question), answers=(fields.text(row, answer),))

    return parse


def alpaca(row: Row) -> Item:
    """`instruction`, `input`, which may be empty, and `output`.

    An input follows the instruction after a line break. `text`, which some versions have, is the
    same again within a template.

    Raises:
        BrokenRowError: the row cannot be used.
    """
    parts = [fields.text(row, 'instruction'), fields.optional_text(row, 'input')]
    return Item('\n'.join(filter(None, parts)), answers=(fields.text(row, 'output'),))
