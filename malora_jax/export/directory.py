"""Atomic creation of a directory: it appears with all its files, or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from malora_jax import files
from malora_jax.errors import UserError


def check_new_directory(path: pathlib.Path) -> None:
    """Check that `path` does not exist yet, or is an empty directory.

    Raises:
        UserError: `path` exists and is not an empty directory, or is the current directory.
    """
    # The temporary directory cannot be renamed to a path without a name, such as '.'.
    if path.exists() and (not path.name or not path.is_dir() or any(path.iterdir())):
        raise UserError(f'--output: {path} exists already; choose a new directory.')


@contextlib.contextmanager
def atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary directory to write to, which is renamed to `path` at the end.

    After an error nothing is left behind.

    Args:
        path: Directory to create.

    Raises:
        UserError: `path` exists and is not an empty directory, or is the current directory.
    """
    check_new_directory(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    with files.provisional_directory(path.parent):
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
