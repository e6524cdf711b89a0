"""`UserError`, the exception for mistakes that the user can fix, and functions that create it."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator

from malora_jax import schema

# The largest int32.
_MAX_INT32 = 2**31 - 1
# Maximum number of known names that are compared with an unknown name, and maximum number of known
# names that a message lists.
_MAX_COMPARED_NAMES, _MAX_LISTED_NAMES = 1000, 100

short_repr = schema.short_repr


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the field, file or row at fault and says what would be
    right. Commands print it without a traceback and exit with status 2.
    """


@contextlib.contextmanager
def prefix_errors(location: object) -> Iterator[None]:
    """Prefix the message of any `UserError` from the `with` block with a location.

    A message that already contains the location is not changed.

    Args:
        location: File or row that is at fault.

    Raises:
        UserError: The `with` block raised it.
    """
    try:
        yield
    except UserError as error:
        if str(location) in str(error):
            raise
        raise UserError(f'{location}: {error}') from error


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not in a registry, with suggestions.

    Args:
        kind: Kind of the name, such as 'task'.
        name: Unknown name.
        known: Names in the registry.
    """
    every = sorted(known)
    # The number of known names may be large: they may be the columns of a user's table.
    near = difflib.get_close_matches(str(name)[:200], every[:_MAX_COMPARED_NAMES], n=3, cutoff=0.5)
    listed = ', '.join(every[:_MAX_LISTED_NAMES])
    more = f' and {len(every) - _MAX_LISTED_NAMES:,} more' if len(every) > _MAX_LISTED_NAMES else ''
    hint = f'did you mean {" or ".join(near)}?' if near else f'known are {listed}{more}.'
    return UserError(f'Unknown {kind} {short_repr(name)}: {hint}')


def out_of_range(field: str, value: object, expected: str) -> UserError:
    """Return the error for a field whose value is out of range.

    Args:
        field: Name of the field.
        value: Value of the field.
        expected: Description of the valid values, such as 'at least 1'. It ends the sentence 'it
            must be ...' of the message.
    """
    return UserError(f'{field} is {schema.short_repr(value)}; it must be {expected}.')


def missing_extra(problem: str, extra: str) -> UserError:
    """Return the error for an optional dependency that is not installed.

    Args:
        problem: Description of the problem, such as 'qwix is not installed'.
        extra: Name of the extra in setup.cfg that installs it.
    """
    return UserError(f"{problem}: run pip install '.[{extra}]' in malora_jax's source directory.")


def check_types(section: str, settings: typing.Any) -> None:
    """Check the values of a dataclass of settings against its type hints.

    Args:
        section: Prefix of the fields' names in messages.
        settings: Instance of the dataclass.

    Raises:
        UserError: The value of a field has the wrong type, is infinite or NaN, or is an integer
            that does not fit into int32, the integer type of JAX arrays.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f'{section}.{field.name}'
        if type(value) is int and abs(value) > _MAX_INT32:
            raise out_of_range(name, value, f'at most {_MAX_INT32:,} in magnitude')
        fault = schema.find_mismatch(hints[field.name], value, name)
        if fault:
            # The fault may be an item of a tuple; the message shows the whole tuple.
            raise out_of_range(name, value, schema.describe(hints[field.name]))
