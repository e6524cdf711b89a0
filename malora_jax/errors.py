"""The one exception for mistakes that the user can mend."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the field, file or row at fault and says what would be
    right. Command-line entries print it without a traceback and exit with status 2.
    """


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the near ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}?' if near else f'known are {", ".join(known)}.'
    return UserError(f'Unknown {kind} {name!r}: {hint}')


def out_of_range(field: str, value: object, right: str) -> UserError:
    """The error for a config field whose value cannot be."""
    return UserError(f'{field} is {value!r}; it must be {right}.')


def check_types(section: str, settings: typing.Any) -> None:
    """Checks the values of a dataclass of settings against its annotations.

    Args:
        section: what the fields' names are prefixed with.
        settings: an instance whose fields are int, float, bool, str, tuples of one of them, or
            anything else, which is not looked at.

    Raises:
        UserError: a value of another type, or a number that is not finite, by its field.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        name = f'{section}.{field.name}'
        if typing.get_origin(hint) is tuple:
            item = typing.get_args(hint)[0]
            right = f'a tuple, each item {_KINDS[item][1]}'
            if type(value) is not tuple or not all(_is_a(item, part) for part in value):
                raise out_of_range(name, value, right)
        elif hint in _KINDS and not _is_a(hint, value):
            raise out_of_range(name, value, _KINDS[hint][1])


# By annotation: the types that will do, exactly (True is no number), and what to call them.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), 'a whole number'),
    float: ((float, int), 'a finite number'),
    bool: ((bool,), 'True or False'),
    str: ((str,), 'text in quotes'),
}


def _is_a(hint: type, value: object) -> bool:
    return type(value) in _KINDS[hint][0] and (hint is not float or math.isfinite(value))  # type: ignore[arg-type]
