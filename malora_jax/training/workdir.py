"""A run's directory: its lock, its config, and whether it may be continued."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from malora_jax import errors, files
from malora_jax.export.identity import base_fingerprint
from malora_jax.training.config import RunConfig, defaults

BASE = 'base.json'


class Identity(TypedDict):
    """What `base.json` holds: which frozen model a run was trained on."""

    name: str
    weights: str
    fingerprint: str


_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the directory and keeps other runs out of it; a killed run's lock is gone with it.

    Raises:
        UserError: another run is at work in it, or the path is no directory.
    """
    if workdir.exists() and not workdir.is_dir():
        raise errors.UserError(f'--workdir: {workdir} is not a directory.')
    with files.locked(workdir, f'Another run is at work in {workdir}.'):
        yield


@contextlib.contextmanager
def begun(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    digests: Mapping[str, str],
    base: Mapping[str, str],
) -> Iterator[None]:
    """A run's directory with what it says of the run; locked within.

    Args:
        workdir: the directory.
        config: as written in configs/.
        digests: as `data_digests` gives them.
        base: as `check_base` gives it.
    """
    with locked(workdir):
        if digests:
            files.write_json(workdir / 'data.json', digests)
        files.write_json(workdir / BASE, base)
        files.write_json(workdir / 'config.json', config)
        yield


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of the run in a directory, as written in configs/.

    Raises:
        UserError: there is no run.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise errors.UserError(f'{workdir} holds no run: there is no {path}.')
    return files.read_json(path, dict, 'restore it from a copy, or start anew in another --workdir')


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Checks that the directory holds a run with this very config.

    The data's fields count too: with another split, held-out questions may have been trained on.
    Those of the mesh do not: a run goes on with other devices.

    Raises:
        UserError: there is no run, or the first field that differs.
    """
    found, ours = (
        {name: value for name, value in _leaves(each) if not name.startswith('mesh.')}
        for each in (read_config(workdir), json.loads(json.dumps(config)))
    )
    newer, missing = defaults(), object()
    for field, value in ours.items():
        # A field that is newer than the run has the value without which it did.
        if found.pop(field, newer.get(field, missing)) != value:
            raise errors.UserError(
                f'{workdir} holds a run with another {field}: continue that one with its own '
                'config, or choose another --workdir.'
            )
    if found:
        raise errors.UserError(
            f'{workdir} holds a run with fields that this config lacks ({", ".join(found)}): '
            'choose another --workdir.'
        )


def check_base(workdir: pathlib.Path, run: RunConfig, params: Any) -> dict[str, str]:
    """Checks that the base is the one that the run in a directory began with.

    Args:
        workdir: of a run; nothing is checked where it has not begun, or is older than such files.
        run: names the base.
        params: its parameters, as they were loaded now.

    Returns:
        What is to be in `base.json`.

    Raises:
        UserError: it is another, with both named.
    """
    now = {
        'name': run.model.name,
        'weights': run.weights,
        'fingerprint': base_fingerprint(params),
    }
    path = workdir / BASE
    began = files.read_json(path, Identity) if path.exists() else now
    if began['fingerprint'] != now['fingerprint']:
        theirs, ours = (
            f'{base["weights"] or base["name"]} ({base["fingerprint"]})' for base in (began, now)
        )
        raise errors.UserError(
            f'{workdir} was trained on the base {theirs}, and these weights are {ours}: set '
            'model.weights to the former, or choose another --workdir.'
        )
    return now


def check_data(workdir: pathlib.Path, digests: Mapping[str, str]) -> None:
    """Checks that the run's data files are what they were when it began.

    With other rows, held-out questions may have been trained on.

    Args:
        workdir: of a run with the same config.
        digests: by file, as `data.file_digests` gives them now.

    Raises:
        UserError: the first file that differs.
    """
    if not digests:
        return
    found = files.read_json(workdir / 'data.json', dict)
    for file, digest in digests.items():
        if found.get(file) != digest:
            raise errors.UserError(
                f'{file} has changed since the run in {workdir} began: restore it, or choose '
                'another --workdir.'
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
