"""Calls into the C library that raise as Python's own do."""

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """The result of a C function; whole numbers are passed as long.

    Raises:
        OSError: it gave -1, or the C library has no such function.
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
