"""Checked access to the fields of a row, shared by all parsers.

A number is an int if it comes from Parquet. It is text if it comes from CSV or JSON, because
`file_rows` keeps the numbers of JSON as strings.
"""

import re
from collections.abc import Mapping
from typing import Any

from malora_jax.data.datasets.item import BrokenRowError
from malora_jax.data.file_rows import Row, is_utf_8


def text(row: Row, name: str) -> str:
    """Return a text field without the white space around it.

    Raises:
        BrokenRowError: The field is missing, is not text, or is empty.
    """
    return raw_text(row, name).strip()


def raw_text(row: Row, name: str) -> str:
    """Return a text field unchanged, such as code, whose white space matters.

    Raises:
        BrokenRowError: The field is missing, is not text, or is empty.
    """
    return _checked(row.location, f'field {name!r}', _field(row, name))


def optional_text(row: Row, name: str) -> str:
    """Return a text field without the white space around it; '' if it is missing, null or empty.

    Raises:
        BrokenRowError: The field is not text.
    """
    value = row.fields.get(name)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return '' if blank else text(row, name)


def texts(row: Row, name: str, within: str) -> list[str]:
    """Return a list of texts from a field that holds an object.

    For example, `texts(row, 'text', within='choices')` returns the list `choices['text']`.

    Args:
        row: Row with the field.
        name: Name of the list in the object.
        within: Name of the field that holds the object.

    Raises:
        BrokenRowError: There is no such list, or an entry is not text or is empty.
    """
    parent = _field(row, within)
    if not isinstance(parent, Mapping) or not isinstance(parent.get(name), list):
        raise BrokenRowError(
            f'{row.location}: field {within!r} must be an object with a list {name!r}.'
        )
    return [
        _checked(row.location, f'entry {number} of {name!r}', value).strip()
        for number, value in enumerate(parent[name], start=1)
    ]


def raw_texts(row: Row, name: str) -> list[str]:
    """Return a list of texts unchanged, with the white space around them.

    Raises:
        BrokenRowError: The field is missing or is not a list, or an entry is not text or is empty.
    """
    values = _field(row, name)
    if not isinstance(values, list):
        raise BrokenRowError(
            f'{row.location}: field {name!r} is {_describe(values)}; it must be a list of texts.'
        )
    return [
        _checked(row.location, f'entry {number} of {name!r}', value)
        for number, value in enumerate(values, start=1)
    ]


def index(row: Row, name: str, count: int, hint: str = '') -> int:
    """Return an integer field in the range 0 to count - 1, such as the index of an option.

    Args:
        row: Row with the field.
        name: Name of the field.
        count: Number of options.
        hint: Text at the end of the error message for a number out of range.

    Raises:
        BrokenRowError: The field is not a whole number, or is out of range.
    """
    value = whole_number(row, name)
    if not 0 <= value < count:
        raise BrokenRowError(
            f'{row.location}: field {name!r} is {value}; it must be 0 to {count - 1}{hint}.'
        )
    return value


def whole_number(row: Row, name: str) -> int:
    """Return an integer field, stored as a number or as text; commas may separate thousands.

    Raises:
        BrokenRowError: The field is missing or is not a whole number.
    """
    value = _field(row, name)
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r'-?(\d+|\d{1,3}(,\d{3})+)', value.strip(), re.A):
        return int(value.replace(',', ''))
    raise BrokenRowError(
        f'{row.location}: field {name!r} is {_describe(value)}; it must be a whole number.'
    )


def number(row: Row, name: str) -> str:
    """Return a number, stored as a number or as text, as text such as '-2' or '0.5'.

    Raises:
        BrokenRowError: The field is missing or is not a decimal number.
    """
    value = _field(row, name)
    plain = str(value).strip().replace(',', '')
    if isinstance(value, bool) or not re.fullmatch(r'-?\d+(\.\d+)?', plain, re.ASCII):
        raise BrokenRowError(
            f'{row.location}: field {name!r} is {_describe(value)}; it must be a number.'
        )
    return plain


def boolean(row: Row, name: str) -> bool:
    """Return a Boolean field, stored as true or false or as text.

    Raises:
        BrokenRowError: The field is missing or is not a Boolean.
    """
    value = _field(row, name)
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ('true', 'false') or isinstance(word, bool):
        return word in ('true', True)
    raise BrokenRowError(
        f'{row.location}: field {name!r} is {_describe(value)}; it must be true or false.'
    )


def _field(row: Row, name: str) -> Any:
    if name not in row.fields:
        # Without a header, the first data row is taken for the names, so they may be long.
        known = ', '.join(repr(field[:40]) for field in row.fields)
        raise BrokenRowError(f'{row.location} has no field {name!r}; it has {known or "none"}.')
    return row.fields[name]


def _checked(location: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BrokenRowError(f'{location}: {what} is {_describe(value)}; it must be text.')
    if not value.strip():
        raise BrokenRowError(f'{location}: {what} is empty; it must be text.')
    if not is_utf_8(value):
        raise BrokenRowError(f'{location}: {what} is not UTF-8: save the file as UTF-8.')
    return value


def _describe(value: Any) -> str:
    if value is None:
        return 'missing (null)'
    if isinstance(value, Mapping):
        return 'an object'
    if isinstance(value, list):
        return 'a list'
    return repr(value) if len(repr(value)) <= 60 else f'{repr(value)[:60]}…'
