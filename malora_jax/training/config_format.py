"""Format of `config.json`, and migration of configs that earlier versions stored.

A change that makes stored configs unreadable must increase `FORMAT` and add a function to
`_MIGRATIONS`. A new field needs neither if its default keeps the behavior of earlier runs.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from malora_jax import errors, files
from malora_jax.adapters.settings import migrate_settings
from malora_jax.training.run_files import REMEDY

FORMAT = 2

_Config = dict[str, Any]


def write_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Write a config with its format version.

    Args:
        path: Path of the file to write.
        config: Nested config, as `get_config` of a module in configs/ returns it.
    """
    files.write_json(path, {'format': FORMAT, **config})


def read_config(path: pathlib.Path) -> _Config:
    """Read a stored config, and migrate it to the current format.

    Args:
        path: Path of the file to read.

    Returns:
        The nested config without the format version.

    Raises:
        UserError: The file is invalid, or a newer version of this package wrote it.
        FileNotFoundError: The file does not exist.
    """
    config = files.read_json(path, dict, REMEDY)
    version = config.pop('format', 1)
    if type(version) is not int or version < 1:
        raise errors.UserError(
            f'{path}: format is {errors.short_repr(version)}; it must be a whole number from 1 to '
            f'{FORMAT}: {REMEDY}.'
        )
    if version > FORMAT:
        raise errors.UserError(
            f'{path} has format {version}, which a newer malora_jax wrote; this version reads '
            f'formats up to {FORMAT}: upgrade malora_jax.'
        )
    for number in range(version, FORMAT):
        config = _MIGRATIONS[number](config)
    return config


def _from_format_1(config: _Config) -> _Config:
    if not isinstance(config.get('adapter'), Mapping):
        return config
    return {**config, 'adapter': migrate_settings(config['adapter'])}


# Migrations by format: each returns a config of the next format.
_MIGRATIONS: dict[int, Callable[[_Config], _Config]] = {1: _from_format_1}
