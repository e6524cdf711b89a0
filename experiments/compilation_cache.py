"""Persistent compilation cache on disk, so that later starts of a run need not compile again."""

import os
import pathlib
import sys

from malora_jax import files

# Maximum size of the cache in bytes; the least recently used programs are deleted first.
MAX_SIZE = 4 * 2**30


def enable() -> None:
    """Store compiled programs in the user's cache directory, unless JAX already has one.

    Cached programs are executed, so other users must not be able to add files. The directory must
    therefore belong to the user, and is made inaccessible to other users. If that fails, a warning
    is printed and nothing is cached.
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    directory = default_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, 'getuid') and directory.stat().st_uid != os.getuid():
            raise PermissionError(f'{directory} belongs to another user')
        directory.chmod(0o700)
    except OSError as error:
        print(f'The compilation cache is disabled: {error}.', file=sys.stderr)
        return
    import jax  # Here, because some commands need it only for a local model.

    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_compilation_cache_max_size', MAX_SIZE)


def default_directory() -> pathlib.Path:
    """Return the cache directory of compiled programs, in $XDG_CACHE_HOME or ~/.cache."""
    return files.user_cache_directory('compiled')
