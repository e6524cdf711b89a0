"""Parsers of datasets whose answers are generated: GSM8K, HumanEval and E2E NLG."""

import re

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item
from malora_jax.data.file_rows import Row

_ENDING = re.compile(r'#### ?-?[\d,.]*\d$')


def parse_gsm8k(row: Row) -> Item:
    """Parse `question` and `answer`: worked steps whose last line is '#### ' and the number.

    The answer is kept unchanged, including calculator annotations such as <<48/2=24>>, because
    UltraEval shows it like this in its few-shot examples.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    answer = fields.text(row, 'answer')
    if not _ENDING.search(answer):
        raise BrokenRowError(
            f"{row.location}: field 'answer' ends in {answer[-20:]!r}; it must end in '#### ' and "
            'a number.'
        )
    return Item(fields.text(row, 'question'), answers=(answer,))


def parse_humaneval(row: Row) -> Item:
    """Parse `prompt`, `canonical_solution`, `test` and `entry_point` of a HumanEval problem.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    prompt, name = fields.raw_text(row, 'prompt'), fields.text(row, 'entry_point')
    test = fields.raw_text(row, 'test')
    _check_defined(row, 'prompt', prompt, name)
    _check_defined(row, 'test', test, 'check')
    solution = fields.raw_text(row, 'canonical_solution')
    return Item(prompt, answers=(solution,), test=test, entry_point=name)


def parse_e2e(row: Row) -> Item:
    """Parse a meaning representation and one of its several reference texts.

    Their columns are `mr` and `ref` in the original CSV, and `meaning_representation` and
    `human_reference` on the hub.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    original = 'mr' in row.fields
    meaning = fields.text(row, 'mr' if original else 'meaning_representation')
    return Item(meaning, answers=(fields.text(row, 'ref' if original else 'human_reference'),))


def _check_defined(row: Row, field: str, code: str, name: str) -> None:
    if not re.search(rf'^def {re.escape(name)}\(', code, re.MULTILINE):
        raise BrokenRowError(f'{row.location}: field {field!r} must define the function {name!r}.')
