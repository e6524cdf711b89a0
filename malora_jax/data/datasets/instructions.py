"""Parsers of instruction datasets: an instruction and one answer to train on."""

from collections.abc import Callable

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import Item
from malora_jax.data.file_rows import Row


def pair_parser(question_field: str, answer_field: str) -> Callable[[Row], Item]:
    """Return a parser that takes the question and the answer from two fields.

    The parser raises `BrokenRowError` for a row that cannot be used.

    Args:
        question_field: Name of the field with the question.
        answer_field: Name of the field with the answer.
    """

    def parse(row: Row) -> Item:
        return Item(fields.text(row, question_field), answers=(fields.text(row, answer_field),))

    return parse


def parse_alpaca(row: Row) -> Item:
    """Parse `instruction`, `input`, which may be empty, and `output` of an Alpaca row.

    The input follows the instruction after a line break. The field `text` of some versions is
    ignored, because it only repeats the others within a template.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    parts = [fields.text(row, 'instruction'), fields.optional_text(row, 'input')]
    return Item('\n'.join(filter(None, parts)), answers=(fields.text(row, 'output'),))


def parse_code_alpaca(row: Row) -> Item:
    """Parse `instruction`, `input`, which may be empty, and `output`; the input is the passage.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    return Item(
        fields.text(row, 'instruction'),
        fields.optional_text(row, 'input'),
        answers=(fields.text(row, 'output'),),
    )
