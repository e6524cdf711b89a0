"""The one exception for mistakes that the user can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the field, file or row at fault and says what would be
    right. Command-line entries print it without a traceback and exit with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the near ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}?' if near else f'known are {", ".join(known)}.'
    return UserError(f'Unknown {kind} {name!r}: {hint}')


def out_of_range(field: str, value: object, right: str) -> UserError:
    """The error for a config field whose value cannot be."""
    return UserError(f'{field} is {value!r}; it must be {right}.')
