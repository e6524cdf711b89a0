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
    path = workdir / 'config.json'
    wanted = json.loads(json.dumps(config))
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(path, wanted)
        return
    found = dict(_leaves(json.loads(path.read_text('utf-8'))))
    for field, value in _leaves(wanted):
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
