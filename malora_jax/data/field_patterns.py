"""Patterns for the fields of a row: a field's name, or text with field names in braces."""

import decimal
import json
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.data.file_rows import Row, is_utf_8
from malora_jax.errors import UserError, unknown_name

_NUMBERS = (int, float, decimal.Decimal)


def parse_pattern(pattern: str) -> list[tuple[str, str]]:
    """Parse a pattern into pieces: pairs of a text and the name of the field that follows it.

    The name is '' if no field follows the text.

    Raises:
        UserError: The pattern is empty, its braces do not match, or they hold more than a name.
    """
    if pattern and not set('{}') & set(pattern):
        return [('', pattern)]
    try:
        parts = list(string.Formatter().parse(pattern.replace('\\n', '\n')))
    except ValueError as error:
        raise UserError(f'The field pattern {pattern!r} is broken: {error}.') from error
    names = [name for _, name, _, _ in parts if name is not None]
    if not names or not all(names) or any(spec or convert for _, _, spec, convert in parts):
        raise UserError(
            f'The field pattern {pattern!r} must be the name of a field, or text with names of '
            "fields in braces, such as '{context} {question}'."
        )
    return [(text, name or '') for text, name, _, _ in parts]


def fill_pattern(pieces: Sequence[tuple[str, str]], setting: str, row: Row) -> str:
    """Return the text of a pattern for one row.

    Args:
        pieces: Parsed pattern, from `parse_pattern`.
        setting: Name of the setting that holds the pattern, for error messages.
        row: Row with the values of the fields.

    Raises:
        UserError: A field is missing or is not text, or all fields are empty.
    """
    values = {name: _value(name, setting, row) for _, name in pieces if name}
    if not any(value.strip() for value in values.values()):
        names = ' and '.join(repr(name) for name in values)
        raise UserError(
            f'{row.location}: {setting} yields no text, because there is none in {names}.'
        )
    return ''.join(text + values.get(name, '') for text, name in pieces)


def _value(name: str, setting: str, row: Row) -> str:
    """Return a field as text; numbers and booleans as JSON writes them."""
    if name not in row.fields:
        # Without a header, the first data row is taken for the names, so they may be long.
        known = [field if len(field) <= 40 else f'{field[:40]}…' for field in row.fields]
        raise UserError(
            f'{row.location}: {unknown_name(setting, name, known)} To set {setting} for one file '
            'alone, use data.file_settings.'
        )
    value = row.fields[name]
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, _NUMBERS) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f'{row.location}: field {name!r} is {_kind(value)}; it must be text or a number.'
        )
    if not is_utf_8(value):
        raise UserError(f'{row.location}: field {name!r} is not UTF-8: save the file as UTF-8.')
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, _NUMBERS):
        return 'missing (null)'
    if isinstance(value, Mapping):
        return 'an object'
    return 'a list' if isinstance(value, list) else f'of type {type(value).__name__}'
