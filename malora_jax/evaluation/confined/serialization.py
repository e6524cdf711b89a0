"""Serialization of values between a test and a candidate: plain data as JSON, never pickle.

The receiver reconstructs each value from a built-in type or a class of its own program. Classes of
the sender are not transferred. A candidate therefore cannot send an object whose `__eq__` makes it
equal to every expected result.
"""

import collections
import decimal
import enum
import fractions
import types
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

from . import event_loop

# Name of the module in which each process runs its program: the candidate's source, or the prompt
# and the test. Only instances of classes of this module are transferred with their class name.
PROGRAM = 'program'

_NUMBERS: dict[type, Callable[[Any], Any]] = {
    complex: lambda value: [value.real, value.imag],
    range: lambda value: [value.start, value.stop, value.step],
    decimal.Decimal: str,
    fractions.Fraction: str,
}
_COLLECTIONS = (tuple, set, frozenset, bytes, bytearray, collections.deque)


def pack(value: Any) -> Any:
    """Return a JSON-serializable form of a value.

    Numbers, strings, dates, lists, tuples, deques, sets and dictionaries keep their type, but a
    subclass becomes its base class: a Counter becomes a dictionary. If the program of this process
    (the candidate's source, or the prompt and the test) defines a class, an instance of the class
    is sent as the name of the class and the attributes. Any other iterable is read to its end and
    arrives as an iterator. A coroutine is run to its end, and its result is sent.

    Raises:
        TypeError: The value contains an object of another kind.
    """
    return _Packer().pack_all(value)


class _Packer:
    """Converts one value to the form that `pack` returns.

    The objects in the value are numbered, because they may refer to each other.
    """

    def __init__(self) -> None:
        self._indices: dict[int, int] = {}
        self._objects: list[Any] = []

    def pack_all(self, value: Any) -> Any:
        packed = self._pack(value)
        # Packing an object appends the objects that it refers to. The loop avoids recursion, so
        # that linked lists may be longer than Python's recursion limit.
        rows = [self._pack_object(item) for item in self._objects]
        return {'objects': [rows, packed]} if rows else packed

    def _pack(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return self._pack_items(value)
        if isinstance(value, dict):
            return {'dict': [[self._pack(key), self._pack(item)] for key, item in value.items()]}
        for number_type, parts in _NUMBERS.items():
            if isinstance(value, number_type):
                return {number_type.__name__: parts(value)}
        kind = type(value)
        is_own = kind.__module__ == PROGRAM
        if is_own and isinstance(value, tuple) and hasattr(value, '_fields'):
            return {'named tuple': [kind.__qualname__, self._pack_items(value)]}
        if is_own and isinstance(value, enum.Enum):
            return {'member': [kind.__qualname__, value.name, self._pack(value.value)]}
        for collection in _COLLECTIONS:
            if isinstance(value, collection):
                return {collection.__name__: self._pack_items(value)}
        if isinstance(value, Coroutine):
            return {'coroutine': self._pack(event_loop.run(value))}
        if kind.__module__ == 'datetime':
            return {'datetime': _time_parts(value)}
        if isinstance(value, types.SimpleNamespace) or (is_own and not isinstance(value, Iterator)):
            return {'object': self._object_index(value)}
        if isinstance(value, Iterable):
            return {'iterator': self._pack_items(value)}
        raise TypeError(f'a {kind.__name__} is not plain data')

    def _pack_items(self, value: Iterable[Any]) -> list[Any]:
        return [self._pack(item) for item in value]

    def _object_index(self, value: Any) -> int:
        if id(value) not in self._indices:
            self._indices[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._indices[id(value)]

    def _pack_object(self, value: Any) -> list[Any]:
        state: Any = object.__getstate__(value) or {}
        if isinstance(state, tuple):  # With `__slots__`, it is (`__dict__`, values of the slots).
            state = {**(state[0] or {}), **state[1]}
        attributes = [[name, self._pack(item)] for name, item in state.items()]
        items = self._pack_items(value) if isinstance(value, Iterable) else None
        return [type(value).__qualname__, attributes, items]


def _time_parts(value: Any) -> list[Any]:
    name = type(value).__name__
    if name == 'timedelta':
        return [name, value.days, value.seconds, value.microseconds]
    return [name, value.isoformat()]


def unpack(packed: Any, classes: Mapping[str, type] = types.MappingProxyType({})) -> Any:
    """Reconstruct a value from the result of `pack`. Hostile input cannot make this run code.

    An instance of a class that is not in `classes` becomes an iterator if it is iterable, else a
    `SimpleNamespace` of its attributes.

    Args:
        packed: JSON form of the value.
        classes: Classes of the receiver's own program, by name.

    Raises:
        Exception: `packed` was not made by `pack`. The exception may have any type.
    """
    return _Unpacker(classes).unpack(packed)


class _Unpacker:
    """Reconstructs one value and the objects in it, as instances of the given classes."""

    def __init__(self, classes: Mapping[str, type]):
        self._classes = classes
        self._objects: list[Any] = []

    def unpack(self, packed: Any) -> Any:
        if isinstance(packed, list):
            return [self.unpack(item) for item in packed]
        if not isinstance(packed, dict):
            return packed
        ((kind, content),) = packed.items()
        if kind == 'objects':
            return self._unpack_all(*content)
        content = self.unpack(content)
        if kind == 'object':
            return self._objects[content]
        if kind == 'named tuple':
            name, items = content
            return tuple.__new__(self._classes.get(name, tuple), items)
        if kind == 'member':
            return self._member(*content)
        return _CONSTRUCTORS[kind](content)

    def _unpack_all(self, rows: list[Any], packed: Any) -> Any:
        # Create all objects before setting attributes, because they may refer to each other.
        made = [self._make_object(*row) for row in rows]
        self._objects = [value for value, _ in made]
        # Complete later rows first: the hash of a set's item may need the item's attributes, and
        # items are in later rows than the object with the set.
        for _, complete in reversed(made):
            complete()
        return self.unpack(packed)

    def _make_object(
        self, name: str, attributes: list[Any], items: Any
    ) -> tuple[Any, Callable[[], None]]:
        """Return an object without content, and a function that adds the content.

        The content may refer to objects that do not exist yet.

        Args:
            name: Name of the object's class.
            attributes: Names and packed values of the attributes.
            items: Packed items if the object is iterable, else None.
        """
        known = self._classes.get(name)
        if known is None and items is not None:
            content: list[Any] = []
            return iter(content), lambda: content.extend(self.unpack(items))
        value = object.__new__(known) if known else types.SimpleNamespace()

        def set_attributes() -> None:
            for attribute, item in attributes:
                object.__setattr__(value, attribute, self.unpack(item))

        return value, set_attributes

    def _member(self, name: str, member: str, value: Any) -> Any:
        known: Any = self._classes.get(name)
        return known[member] if known else types.SimpleNamespace(name=member, value=value)


def _make_time(parts: list[Any]) -> Any:
    import datetime  # Imported on demand, because the import takes longer than most programs run.

    name, *content = parts
    if name == 'timedelta':
        return datetime.timedelta(*content)
    kinds: dict[str, Any] = {
        'date': datetime.date,
        'time': datetime.time,
        'datetime': datetime.datetime,
    }
    return kinds[name].fromisoformat(*content)


async def _as_coroutine(value: Any) -> Any:
    return value


_CONSTRUCTORS: dict[str, Callable[[Any], Any]] = {
    'dict': dict,
    'complex': lambda parts: complex(*parts),
    'range': lambda parts: range(*parts),
    'Decimal': decimal.Decimal,
    'Fraction': fractions.Fraction,
    **{collection.__name__: collection for collection in _COLLECTIONS},
    'coroutine': _as_coroutine,
    'datetime': _make_time,
    'iterator': iter,
}
