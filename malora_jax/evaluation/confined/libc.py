"""Calls of C library functions that raise OSError on failure, like Python's own functions."""

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library and return its result.

    Args:
        name: Name of the function.
        *arguments: Arguments of the function; integers are passed as C long.

    Raises:
        OSError: The function returned -1, or the C library has no such function.
    """
    try:
        function = getattr(_LIBC, name)
    except AttributeError as error:
        raise OSError(f'the C library has no {name}') from error
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f'{name}: {os.strerror(code)}')
    return result
