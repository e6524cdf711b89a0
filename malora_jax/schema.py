"""Validation of values against type hints, for JSON from files and for config sections.

A type hint describes the allowed values: int, float, bool, str, None, Any, a union, list, tuple or
Sequence, dict or Mapping with string keys, a Path, a Literal, a TypedDict, or a dataclass, which
describes a JSON object with the dataclass's fields.
"""

import dataclasses
import difflib
import functools
import math
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

_MAX_REPR_LENGTH = 200
_SCALARS: dict[Any, str] = {
    int: 'a whole number',
    float: 'a finite number',
    bool: 'True or False',
    str: 'text in quotes',
    type(None): 'null',
}


_MAX_INT = 2**63 - 1


class AnyNumber(float):
    """Type hint for a number that may be NaN or infinite, such as a metric of a run."""


class PositiveInt(int):
    """Type hint for an integer of at least 1."""


class Mismatch(NamedTuple):
    """A value that does not match its type hint.

    Attributes:
        field: Dotted path of the value; '' for the root value.
        value: Value that does not match, or `MISSING`.
        expected: Description of allowed values; it completes the sentence 'it must be …'.
    """

    field: str
    value: Any
    expected: str

    def __str__(self) -> str:
        # A field name from a foreign file may contain line breaks, which `short_repr` escapes.
        field = short_repr(self.field)[1:-1] or 'the content'
        if self.value is MISSING:
            return f'{field} is missing'
        return f'{field} is {short_repr(self.value)}; it must be {self.expected}'


# Value of a `Mismatch` whose field is missing.
MISSING = object()


def short_repr(value: object) -> str:
    """Return the repr of a value for a message: on one line, and shortened if it is long."""
    if type(value) is int and value.bit_length() > 600:  # Python refuses to print huge integers.
        return f'a number of {value.bit_length():,} bits'
    text = ' '.join(repr(value).split())
    return text if len(text) <= _MAX_REPR_LENGTH else f'{text[:_MAX_REPR_LENGTH]}…'


def find_mismatch(hint: Any, value: Any, field: str = '') -> Mismatch | None:
    """Check a value against a type hint; return the first mismatch, or None if there is none.

    The mismatch may be a part of the value, such as an item of a list. For example:

        find_mismatch(list[int], [1, 'a'], 'ranks')  # Mismatch(field='ranks[1]', value='a', …)

    Args:
        hint: Type hint.
        value: Value to check.
        field: Dotted path of the value, for messages; '' for the root value.
    """
    if hint is Any or (hint in _SCALARS and _is_a(hint, value)):
        return None
    if hint is int and type(value) is int:
        return Mismatch(field, value, 'a whole number of at most 64 bits')
    check = _CHECKS.get(typing.get_origin(hint) or _kind(hint))
    return check(hint, value, field) if check else Mismatch(field, value, describe(hint))


def describe(hint: Any) -> str:
    """Return a description of allowed values, such as 'a list, each item a whole number'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if hint in _SPECIAL:
        return _SPECIAL[hint]
    if origin in _UNIONS:
        return ' or '.join(describe(argument) for argument in arguments)
    if origin is Literal:
        return ' or '.join(map(repr, arguments))
    if origin in _LISTS or hint in _LISTS:
        name = 'a tuple' if origin is tuple else 'a list'
        item = arguments[0] if arguments else Any
        return name if item is Any else f'{name}, each item {describe(item)}'
    return 'an object with fields'


def _is_a(hint: Any, value: Any) -> bool:
    """Return whether a value matches a scalar type hint; bool does not count as a number."""
    if hint is float:
        return type(value) in (int, float) and _is_finite(value)
    return type(value) is hint and (hint is not int or abs(value) <= _MAX_INT)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond the range of floats.
        return False


def _check_any_number(hint: Any, value: Any, field: str) -> Mismatch | None:
    is_valid = type(value) is float or (type(value) is int and _is_finite(value))
    return None if is_valid else Mismatch(field, value, describe(hint))


def _check_positive_int(hint: Any, value: Any, field: str) -> Mismatch | None:
    is_valid = type(value) is int and 1 <= value <= _MAX_INT
    return None if is_valid else Mismatch(field, value, describe(hint))


def _check_path(hint: Any, value: Any, field: str) -> Mismatch | None:
    return None if isinstance(value, pathlib.Path) else Mismatch(field, value, describe(hint))


def _check_union(hint: Any, value: Any, field: str) -> Mismatch | None:
    mismatches = [find_mismatch(each, value, field) for each in typing.get_args(hint)]
    if None in mismatches:
        return None
    # Report the most deeply nested mismatch: for the hint 'object or null', the mismatch in a field
    # of the object.
    deepest = max(mismatches, key=lambda fault: len(fault.field) if fault else 0)
    return deepest if deepest and deepest.field != field else Mismatch(field, value, describe(hint))


def _check_literal(hint: Any, value: Any, field: str) -> Mismatch | None:
    is_valid = any(type(value) is type(each) and value == each for each in typing.get_args(hint))
    return None if is_valid else Mismatch(field, value, describe(hint))


def _check_list(hint: Any, value: Any, field: str) -> Mismatch | None:
    kinds = (tuple,) if typing.get_origin(hint) is tuple else (list, tuple)
    if type(value) not in kinds:
        return Mismatch(field, value, describe(hint))
    item = (typing.get_args(hint) or (Any,))[0]
    if item is Any:
        return None
    mismatches = (find_mismatch(item, part, f'{field}[{i}]') for i, part in enumerate(value))
    return next((fault for fault in mismatches if fault), None)


def _check_mapping(hint: Any, value: Any, field: str) -> Mismatch | None:
    if not isinstance(value, Mapping):
        return Mismatch(field, value, describe(hint))
    _, item = typing.get_args(hint) or (str, Any)
    if item is Any:
        return None
    mismatches = (
        find_mismatch(item, part, _joined(field, str(name))) for name, part in value.items()
    )
    return next((fault for fault in mismatches if fault), None)


def _check_record(hint: Any, value: Any, field: str) -> Mismatch | None:
    # Dataclasses check their fields when an instance is created.
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
        return None
    if not isinstance(value, Mapping):
        return Mismatch(field, value, describe(hint))
    hints, required = _record(hint)
    for name, each in hints.items():
        if name in value:
            mismatch = find_mismatch(each, value[name], _joined(field, name))
        else:
            mismatch = Mismatch(_joined(field, name), MISSING, '') if name in required else None
        if mismatch:
            return mismatch
    # A TypedDict names only the fields that are used; a dataclass allows no other fields.
    strange = sorted(value.keys() - hints.keys()) if dataclasses.is_dataclass(hint) else []
    if strange:
        near = difflib.get_close_matches(strange[0], hints, n=1)
        hint = f' (did you mean {near[0]}?)' if near else ''
        return Mismatch(
            _joined(field, strange[0]),
            value[strange[0]],
            f'absent, because there is no such field{hint}',
        )
    return None


def _joined(field: str, name: str) -> str:
    return f'{field}.{name}' if field else name


@functools.cache
def _record(hint: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the type hints of a dataclass or TypedDict, and the names of its required fields."""
    hints = typing.get_type_hints(hint)
    if not dataclasses.is_dataclass(hint):
        return hints, hint.__required_keys__
    required = [
        field.name
        for field in dataclasses.fields(hint)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return hints, frozenset(required)


def _kind(hint: Any) -> Any:
    """Return the key under which `_CHECKS` holds the check function of a type hint.

    The hint has no type arguments: it is `list`, for example, not `list[int]`. All dataclasses and
    TypedDicts share one key.
    """
    record = dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)
    return dataclasses if record else hint


_SPECIAL = {
    AnyNumber: 'a number',
    PositiveInt: 'a positive whole number',
    pathlib.Path: 'a path',
}
_UNIONS = (typing.Union, types.UnionType)
_LISTS = (list, tuple, Sequence)
_CHECKS: dict[Any, Any] = {
    AnyNumber: _check_any_number,
    PositiveInt: _check_positive_int,
    pathlib.Path: _check_path,
    Literal: _check_literal,
    dataclasses: _check_record,
    **dict.fromkeys(_UNIONS, _check_union),
    **dict.fromkeys(_LISTS, _check_list),
    **dict.fromkeys((dict, Mapping), _check_mapping),
}
