"""Compiled programs stay on disk, so that the next start of the same run need not wait for them."""

import os
import pathlib
import sys

import jax

# Bytes; what was used least recently goes first.
MAX_SIZE = 4 * 2**30


def enable() -> None:
    """Keeps compiled programs in the user's cache directory, unless JAX was told where.

    They are run when they are read: the directory is the user's own and closed to others. Where
    there can be no such directory, everything is compiled anew, as without this.
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
        print(f'Compiled programs are not kept: {error}.', file=sys.stderr)
        return
    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_compilation_cache_max_size', MAX_SIZE)


def default_directory() -> pathlib.Path:
    """Within XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(cache) / 'malora_jax' / 'compiled'
