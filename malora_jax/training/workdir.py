"""A run's directory: its config, and whether it may be continued."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from malora_jax import errors, files

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def open_workdir(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes the directory and writes `config.json`, or checks that it holds this very config.

    Raises:
        UserError: the directory belongs to a run with another config.
    """
    if (workdir / 'config.json').exists():
        check_config(workdir, config)
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / 'config.json', config)


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Checks that the directory holds a run with this very config.

    The data's fields count too: with another split, held-out questions may have been trained on.

    Raises:
        UserError: there is no run, or the first field that differs.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise errors.UserError(f'{workdir} holds no run: there is no {path}.')
    found = dict(_leaves(json.loads(path.read_text('utf-8'))))
    for field, value in _leaves(json.loads(json.dumps(config))):
        if found.pop(field, None) != value:
            raise errors.UserError(
                f'{workdir} holds a run with another {field}: continue that one with its own '
                'config, or choose another --workdir.'
            )
    if found:
        raise errors.UserError(
            f'{workdir} holds a run with fields that this config lacks ({", ".join(found)}): '
            'choose another --workdir.'
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {'python': platform.python_version()} | found


def _leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value
