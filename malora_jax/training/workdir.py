"""Directory of a run: its lock, the identity of its run, and checks before the run resumes."""

import contextlib
import importlib.metadata
import itertools
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from malora_jax import cloud_storage, errors, files
from malora_jax.distributed import hosts
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.training import config_format
from malora_jax.training.checkpoint import LatestCheckpoint, latest_checkpoint
from malora_jax.training.config import RunConfig
from malora_jax.training.identity import (
    LENGTH_FIELDS,
    MUTABLE_FIELDS,
    SCORING_FIELDS,
    FieldChange,
    RunIdentity,
    changed_fields,
    flatten_config,
)
from malora_jax.training.run_files import METRICS_FILE, REMEDY, RESULTS_FILE

CONFIG_FILE, DATA_FILE, BASE_FILE = 'config.json', 'data.json', 'base.json'
# Files that exist only after a run has started and has written its config.
_STARTED_RUN_FILES = (METRICS_FILE, 'answers_after.jsonl', RESULTS_FILE)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


class BaseRecord(TypedDict):
    """Content of `base.json`: the frozen base model of a run.

    Attributes:
        name: Name of the model's preset.
        weights: Location of the weights, as in `model.weights`.
        fingerprint: Fingerprint of the weights.
    """

    name: str
    weights: str
    fingerprint: str


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Create the directory if necessary, and lock it while the `with` block runs.

    Until the block ends, no other run can use the directory. If the process is killed, the
    operating system releases its lock.

    Args:
        workdir: Directory of the run.

    Raises:
        UserError: Another run has the lock, or the path is not a directory.
    """
    if workdir.exists() and not workdir.is_dir():
        raise errors.UserError(f'--workdir: {workdir} is not a directory.')
    with files.lock_directory(workdir, f'Another run is using {workdir}.'):
        yield


class RunDirectory:
    """Directory of a run before the run starts or resumes.

    Attributes:
        path: Path of the directory.
        changes: Config fields that have changed since the run was last started.
    """

    def __init__(self, path: pathlib.Path, config: Mapping[str, Any], data: Mapping[str, Any]):
        """Check that the directory does not hold another run.

        The check reads only the files of the run. It does not need the base model.

        Args:
            path: Path of the directory, which must be locked before `write_identity` is called.
            config: Nested config as written in configs/.
            data: SHA-256 of the data files, from `data_digests`.

        Raises:
            UserError: The directory holds another run, or a file of its run is missing or edited.
        """
        self.path = path
        self._config, self._data = config, data
        self._newest = latest_checkpoint(cloud_storage.remote_path(path / 'checkpoints'))
        self._saved = saved_identity(path, self._newest)
        self.changes = self.identity().check(self._saved, str(path))

    @property
    def is_finished(self) -> bool:
        """True if `results.json` exists and is still valid.

        The results are no longer valid if a changed config field affects the length of the run or
        its scoring.
        """
        asks_for_others = any(
            change.is_one_of((*LENGTH_FIELDS, *SCORING_FIELDS)) for change in self.changes
        )
        return (self.path / RESULTS_FILE).exists() and not asks_for_others

    @property
    def step(self) -> int:
        """Step of the newest checkpoint; 0 without checkpoints."""
        return self._newest.step if self._newest else 0

    def identity(self, base: str | None = None) -> RunIdentity:
        """Return the identity of the run with the current config and data.

        Args:
            base: Fingerprint of the base model; None if it is not loaded yet.
        """
        return RunIdentity(flatten_config(self._config), self._data, base)

    def write_identity(self, run: RunConfig, identity: RunIdentity) -> None:
        """Write the identity of the run: `data.json`, `base.json` and `config.json`.

        If changed fields make earlier results obsolete, these are first moved to `earlier/1`,
        `earlier/2` and so on, with a copy of the config that they belong to.

        Args:
            run: Config of the run, of which the name and the weights of the base model are used.
            identity: Identity of the run, with the fingerprint of the base model.
        """
        for name in (CONFIG_FILE, BASE_FILE, *([DATA_FILE] if self._data else [])):
            if self._saved.config is not None and not (self.path / name).exists():
                print(f'{self.path / name} was missing and is written again.')
        if self._newest and self._newest.identity is None:
            print(
                f'Checkpoint {self._newest.step} of {self.path} has no readable run identity '
                '(older versions stored none); config.json, base.json and data.json are used '
                'instead.'
            )
        for change in self.changes:
            print(f'Changed since the run was last started: {change}.')
        if any(change.is_one_of(SCORING_FIELDS) for change in self.changes):
            self._archive_results(RESULTS_FILE, 'answers_before.jsonl', 'answers_after.jsonl')
        elif any(change.is_one_of(LENGTH_FIELDS) for change in self.changes):
            self._archive_results(RESULTS_FILE, 'answers_after.jsonl')
        if self._data:
            files.write_json(self.path / DATA_FILE, self._data)
        files.write_json(
            self.path / BASE_FILE,
            {'name': run.model.name, 'weights': run.weights, 'fingerprint': identity.base},
        )
        config_format.write_config(self.path / CONFIG_FILE, self._config)

    def _archive_results(self, *names: str) -> None:
        names = tuple(name for name in names if (self.path / name).exists())
        if not names:
            return
        folders = (self.path / 'earlier' / str(number) for number in itertools.count(1))
        folder = next(folder for folder in folders if not folder.exists())
        folder.mkdir(parents=True)
        for name in {CONFIG_FILE, *names}:
            shutil.copy(self.path / name, folder)
        cloud_storage.upload_changes()
        for name in names:
            cloud_storage.remove(self.path / name)
        print(f'Earlier results are in {folder}.')


@contextlib.contextmanager
def open_run_directory(
    workdir: pathlib.Path, config: Mapping[str, Any], data: Mapping[str, Any]
) -> Iterator[RunDirectory]:
    """Check the directory of a run as `RunDirectory` does, and lock it while the block runs.

    If the run has several processes, only the first one takes the lock.

    Args:
        workdir: Directory of the run; it is created if it does not exist.
        config: Nested config as written in configs/.
        data: SHA-256 of the data files, from `data_digests`.

    Raises:
        UserError: Another run has the lock, the directory holds another run, or a file of its run
            is missing or edited.
    """
    with lock_workdir(workdir) if hosts.is_first_process() else contextlib.nullcontext():
        yield RunDirectory(workdir, config, data)


def read_workdir_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Read the config of the run in a directory, nested as written in configs/.

    Args:
        workdir: Directory of the run.

    Raises:
        UserError: The directory holds no run, or its `config.json` cannot be read.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise errors.UserError(f'{workdir} holds no run: there is no {path}.')
    return config_format.read_config(path)


def check_run(
    workdir: pathlib.Path, config: Mapping[str, Any], data: Mapping[str, Any] | None
) -> list[FieldChange]:
    """Check that a directory holds a run with this config and these data.

    Args:
        workdir: Directory of the run.
        config: Nested config as written in configs/.
        data: SHA-256 of the data files, from `data_digests`; None to skip their comparison.

    Returns:
        The fields that differ. They are all fields that are allowed to change when a run resumes.

    Raises:
        UserError: The directory holds no run or another run, or a file of the run is missing or
            edited.
    """
    saved = saved_identity(
        workdir, latest_checkpoint(cloud_storage.remote_path(workdir / 'checkpoints'))
    )
    if saved.config is None:
        raise errors.UserError(f'{workdir} holds no run: there is no {workdir / CONFIG_FILE}.')
    return RunIdentity(flatten_config(config), data, None).check(saved, str(workdir))


def saved_identity(workdir: pathlib.Path, newest: LatestCheckpoint | None) -> RunIdentity:
    """Return the identity of the run in a directory, from its files and its newest checkpoint.

    The files must agree with the identity in the newest checkpoint. If a file is missing, its part
    of the identity is taken from the checkpoint.

    Args:
        workdir: Directory of the run.
        newest: Newest checkpoint of the run; None if there is none.

    Returns:
        The identity; an unknown part is None. If the directory holds no run, all parts are None.

    Raises:
        UserError: A file was edited, or `config.json` is missing and no checkpoint has the
            identity.
    """
    path = workdir / CONFIG_FILE
    config = config_format.read_config(path) if path.exists() else None
    data, base = (
        files.read_json(path, kind, REMEDY) if (path := workdir / name).exists() else None
        for name, kind in ((DATA_FILE, dict), (BASE_FILE, BaseRecord))
    )
    from_files = RunIdentity(
        None if config is None else flatten_config(config),
        data,
        None if base is None else base['fingerprint'],
    )
    from_checkpoint = newest.identity if newest else None
    if from_checkpoint is None:
        remains = [name for name in _STARTED_RUN_FILES if (workdir / name).exists()]
        if config is None and (newest or remains):
            raise errors.UserError(
                f'{workdir / CONFIG_FILE} is missing from a run: restore it, or choose another '
                '--workdir.'
            )
        return from_files
    for name, what, value, right in (
        (DATA_FILE, 'digests', from_files.data, from_checkpoint.data),
        (BASE_FILE, 'fingerprint', from_files.base, from_checkpoint.base),
    ):
        if value not in (None, right):
            raise _edited(workdir / name, what)
    for change in changed_fields(from_checkpoint.config or {}, from_files.config or {}):
        if not change.is_one_of(MUTABLE_FIELDS):
            raise _edited(workdir / CONFIG_FILE, change.field)
    return RunIdentity(
        from_checkpoint.config if from_files.config is None else from_files.config,
        from_checkpoint.data,
        from_checkpoint.base,
    )


def _edited(path: pathlib.Path, what: str) -> errors.UserError:
    return errors.UserError(
        f'{path} was edited: it no longer matches the {what} in the checkpoints next to it; '
        'restore it, or remove it and start the command with the config of the run.'
    )


def read_base(workdir: pathlib.Path) -> BaseRecord | None:
    """Return the record of a run's base model.

    The result is None if the run has not started or is from an older version of this package.

    Raises:
        UserError: The record is broken.
    """
    path = workdir / BASE_FILE
    return files.read_json(path, BaseRecord, REMEDY) if path.exists() else None


def check_base(workdir: pathlib.Path, run: RunConfig, params: Any) -> str:
    """Check that the run in a directory was started with this base model.

    Args:
        workdir: Directory of the run. Nothing is checked if it has no `base.json`, because the run
            has not started or is from an older version of this package.
        run: Config of the run, of which the name and the weights of the base model are used for
            error messages.
        params: Parameters of the base model.

    Returns:
        The fingerprint of the base model.

    Raises:
        UserError: The run was started with another base model; the message names both.
    """
    fingerprint, stored = base_fingerprint(params), read_base(workdir)
    if stored and stored['fingerprint'] != fingerprint:
        theirs = f'{stored["weights"] or stored["name"]} ({stored["fingerprint"]})'
        ours = f'{run.weights or run.model.name} ({fingerprint})'
        raise errors.UserError(
            f'{workdir} was trained on the base model {theirs}, but these weights are {ours}: set '
            'model.weights to the base model of the run, or choose another --workdir.'
        )
    return fingerprint


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect numerical results."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {'python': platform.python_version()} | found
