"""Rows whose answer is written and then scored: GSM8K, HumanEval, E2E NLG."""

import re

from malora_jax.data.benchmarks import fields
from malora_jax.data.benchmarks.item import BrokenRowError, Item
from malora_jax.data.rows import Row

_ENDING = re.compile(r'#### ?-?[\d,.]*\d$')


def gsm8k(row: Row) -> Item:
    """`question`, and `answer`: worked steps whose last line is '#### ' and the number.

    The answer stays as it is, calculator annotations such as <<48/2=24>> included: UltraEval shows
    it so in its examples.

    Raises:
        BrokenRowError: the row cannot be used.
    """
    answer = fields.text(row, 'answer')
    if not _ENDING.search(answer):
        raise BrokenRowError(
            f"{row.place}: field 'answer' ends in {answer[-20:]!r}; it must end in '#### ' and a "
            'number.'
        )
    return Item(fields.text(row, 'question'), answers=(answer,))


def humaneval(row: Row) -> Item:
    """`prompt`, `canonical_solution`, `test` and `entry_point`.

    Raises:
        BrokenRowError: the row cannot be used.
    """
    prompt, name = fields.raw_text(row, 'prompt'), fields.text(row, 'entry_point')
    test = fields.raw_text(row, 'test')
    _check_defined(row, 'prompt', prompt, name)
    _check_defined(row, 'test', test, 'check')
    solution = fields.raw_text(row, 'canonical_solution')
    return Item(prompt, answers=(solution,), test=test, entry_point=name)


def e2e(row: Row) -> Item:
    """A meaning representation and a text of it, one of several.

    The original CSV calls them `mr` and `ref`, the hub `meaning_representation` and
    `human_reference`.

    Raises:
        BrokenRowError: the row cannot be used.
    """
    original = 'mr' in row.fields
    meaning = fields.text(row, 'mr' if original else 'meaning_representation')
    return Item(meaning, answers=(fields.text(row, 'ref' if original else 'human_reference'),))


def _check_defined(row: Row, field: str, code: str, name: str) -> None:
    if not re.search(rf'^def {re.escape(name)}\(', code, re.MULTILINE):
        raise BrokenRowError(f'{row.place}: field {field!r} must define the function {name!r}.')
