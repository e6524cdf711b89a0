"""The one exception for mistakes that the user can mend."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator

from malora_jax import schema

# The largest int32.
_MOST = 2**31 - 1
# Of known names: that are compared with an unknown one, and that are listed.
_MOST_NAMES, _MOST_LISTED = 1000, 100

shown = schema.shown


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the field, file or row at fault and says what would be
    right. Command-line entries print it without a traceback and exit with status 2.
    """


@contextlib.contextmanager
def within(place: object) -> Iterator[None]:
    """Names the file, or the row, in the messages of mistakes that are found meanwhile."""
    try:
        yield
    except UserError as error:
        if str(place) in str(error):
            raise
        raise UserError(f'{place}: {error}') from error


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the near ones first."""
    every = sorted(known)
    # A table may have any number of columns.
    near = difflib.get_close_matches(str(name)[:200], every[:_MOST_NAMES], n=3, cutoff=0.5)
    listed = ', '.join(every[:_MOST_LISTED])
    more = f' and {len(every) - _MOST_LISTED:,} more' if len(every) > _MOST_LISTED else ''
    hint = f'did you mean {" or ".join(near)}?' if near else f'known are {listed}{more}.'
    return UserError(f'Unknown {kind} {shown(name)}: {hint}')


def out_of_range(field: str, value: object, right: str) -> UserError:
    """The error for a config field whose value cannot be."""
    return UserError(f'{field} is {schema.shown(value)}; it must be {right}.')


def check_types(section: str, settings: typing.Any) -> None:
    """Checks the values of a dataclass of settings against its annotations.

    Args:
        section: what the fields' names are prefixed with.
        settings: an instance; its whole numbers must fit into 32 bits, as arrays have them.

    Raises:
        UserError: a value of another type, or a number that is not finite or too large, by its
            field.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f'{section}.{field.name}'
        if type(value) is int and abs(value) > _MOST:
            raise out_of_range(name, value, f'at most {_MOST:,} in magnitude')
        fault = schema.find_fault(hints[field.name], value, name)
        if fault:
            # Of a tuple, all of it is shown.
            raise out_of_range(name, value, schema.describe(hints[field.name]))
