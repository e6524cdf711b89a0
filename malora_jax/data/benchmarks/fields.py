"""Fields of a row by name, checked: what every parser reads with.

A number may be an int, as Parquet has it, or text, as CSV has it and as `rows` leaves it of JSON.
"""

import re
from collections.abc import Mapping
from typing import Any

from malora_jax.data.benchmarks.item import BrokenRowError
from malora_jax.data.rows import Row, is_utf_8


def text(row: Row, name: str) -> str:
    """A field that holds text, without the white space around it.

    Raises:
        BrokenRowError: the field is missing, no text, or empty.
    """
    return raw_text(row, name).strip()


def raw_text(row: Row, name: str) -> str:
    """A field that holds text as it is, such as code, whose white space matters.

    Raises:
        BrokenRowError: the field is missing, no text, or empty.
    """
    return _checked(row.place, f'field {name!r}', _field(row, name))


def optional_text(row: Row, name: str) -> str:
    """Like `text`, but '' if the field is missing, null or empty.

    Raises:
        BrokenRowError: the field is something else.
    """
    value = row.fields.get(name)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return '' if blank else text(row, name)


def texts(row: Row, name: str, within: str) -> list[str]:
    """A list of texts in a field of an object, such as 'text' within 'choices'.

    Raises:
        BrokenRowError: there is no such list, or an entry is no text or empty.
    """
    parent = _field(row, within)
    if not isinstance(parent, Mapping) or not isinstance(parent.get(name), list):
        raise BrokenRowError(
            f'{row.place}: field {within!r} must be an object with a list {name!r}.'
        )
    return [
        _checked(row.place, f'entry {number} of {name!r}', value).strip()
        for number, value in enumerate(parent[name], start=1)
    ]


def index(row: Row, name: str, count: int, hint: str = '') -> int:
    """A field that holds one of 0 … count - 1.

    Args:
        row: the row.
        name: the field.
        count: of the options.
        hint: what to do about another number, at the end of the message.

    Raises:
        BrokenRowError: it is no whole number, or another one.
    """
    value = whole_number(row, name)
    if not 0 <= value < count:
        raise BrokenRowError(
            f'{row.place}: field {name!r} is {value}; it must be 0 to {count - 1}{hint}.'
        )
    return value


def whole_number(row: Row, name: str) -> int:
    """A field that holds a whole number, as a number or as text; commas may part thousands.

    Raises:
        BrokenRowError: it holds something else.
    """
    value = _field(row, name)
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r'-?(\d+|\d{1,3}(,\d{3})+)', value.strip(), re.A):
        return int(value.replace(',', ''))
    raise BrokenRowError(
        f'{row.place}: field {name!r} is {_shown(value)}; it must be a whole number.'
    )


def boolean(row: Row, name: str) -> bool:
    """A field that is true or false, as such or as text.

    Raises:
        BrokenRowError: it is something else.
    """
    value = _field(row, name)
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ('true', 'false') or isinstance(word, bool):
        return word in ('true', True)
    raise BrokenRowError(
        f'{row.place}: field {name!r} is {_shown(value)}; it must be true or false.'
    )


def _field(row: Row, name: str) -> Any:
    if name not in row.fields:
        # A table without a header has a whole row where the names should be.
        known = ', '.join(repr(field[:40]) for field in row.fields)
        raise BrokenRowError(f'{row.place} has no field {name!r}; it has {known or "none"}.')
    return row.fields[name]


def _checked(place: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BrokenRowError(f'{place}: {what} is {_shown(value)}; it must be text.')
    if not value.strip():
        raise BrokenRowError(f'{place}: {what} is empty; it must be text.')
    if not is_utf_8(value):
        raise BrokenRowError(f'{place}: {what} is not UTF-8: save the file as UTF-8.')
    return value


def _shown(value: Any) -> str:
    if value is None:
        return 'missing (null)'
    if isinstance(value, Mapping):
        return 'an object'
    if isinstance(value, list):
        return 'a list'
    return repr(value) if len(repr(value)) <= 60 else f'{repr(value)[:60]}…'
