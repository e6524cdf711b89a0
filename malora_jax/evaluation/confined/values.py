"""Values on the wire between a test and a candidate: plain data as JSON, never pickle.

Whatever a candidate makes arrives as a fresh value of a type of Python itself, so that its classes
and their patched comparisons stay behind.
"""

import decimal
import fractions
from collections.abc import Callable, Iterable
from typing import Any


def pack(value: Any) -> Any:
    """What JSON can hold of a value.

    Numbers, texts, lists, tuples, sets and dictionaries stay what they are, without subclasses (a
    Counter is a dictionary, a named tuple a tuple). Any other iterable, such as a range or a
    generator, is read to its end and arrives as an iterator.

    Raises:
        TypeError: there is something else in it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {'dict': [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {'complex': [value.real, value.imag]}
    for number in (decimal.Decimal, fractions.Fraction):
        if isinstance(value, number):
            return {number.__name__: str(value)}
    for kind in (tuple, set, frozenset, bytes, bytearray, Iterable):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    raise TypeError(f'a {type(value).__name__} is no plain data')


def unpack(packed: Any) -> Any:
    """The value that `pack` was given; nothing that others send can make it run code.

    Raises:
        Exception: of any kind, if `packed` was not made by `pack`.
    """
    if isinstance(packed, list):
        return [unpack(item) for item in packed]
    if isinstance(packed, dict):
        ((kind, content),) = packed.items()
        return _MAKERS[kind](unpack(content))
    return packed


_MAKERS: dict[str, Callable[[Any], Any]] = {
    'dict': dict,
    'complex': lambda parts: complex(*parts),
    'Decimal': decimal.Decimal,
    'Fraction': fractions.Fraction,
    'tuple': tuple,
    'set': set,
    'frozenset': frozenset,
    'bytes': bytes,
    'bytearray': bytearray,
    'Iterable': iter,
}
