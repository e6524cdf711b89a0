"""A directory that is there as a whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from malora_jax import files
from malora_jax.errors import UserError


def check_new(path: pathlib.Path) -> None:
    """Checks that there is nothing at `path` yet, or an empty directory.

    Raises:
        UserError: there is something, or it is the current directory.
    """
    # The current directory has no name that could be given.
    if path.exists() and (not path.name or not path.is_dir() or any(path.iterdir())):
        raise UserError(f'--output: {path} exists already; choose a new directory.')


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory to write to, which gets the name `path` at the end.

    Raises:
        UserError: there is something at `path` already.
    """
    check_new(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    with files.removed_if_refused(path.parent):
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
