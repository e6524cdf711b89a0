"""Reading of runs from their directories. All reports take their numbers from here."""

import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from malora_jax import files
from malora_jax.cloud_storage import remote_path
from malora_jax.errors import UserError
from malora_jax.export.adapter import is_adapter
from malora_jax.models import Decoder
from malora_jax.training import config_format, goodput, run_files
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.restore import read_run_config
from malora_jax.training.workdir import BASE_FILE, CONFIG_FILE, BaseRecord

_Content = TypeVar('_Content')


class LoadedRun:
    """A run in a directory. Each property reads its file on first use, and caches the content.

    Properties raise a UserError if their file is missing or broken. `read_runs` reads all files
    that every report needs, so that a broken run is refused before a report is started.

    Attributes:
        path: Directory of the run.
        name: Name in reports. `read_runs` uses the name of the directory, or its whole path if the
            name is not unique.
        file_name: Prefix of the file names of its plots.

    Example:
        run = LoadedRun(pathlib.Path('runs/quickstart'))
        print(run.method, run.results['average']['after'])
    """

    def __init__(
        self, path: pathlib.Path, name: str = '', file_name: str = '', weights: str | None = None
    ):
        """Store the names of the run; its files are read later.

        Args:
            path: Directory of the run.
            name: Name in reports; '' for the name of the directory.
            file_name: Prefix of the file names of its plots.
            weights: Location of the base model's weights, if they have moved since training.
        """
        self.path = path
        self.name = name or path.name
        self.file_name = file_name
        self._weights = weights

    @functools.cached_property
    def raw_config(self) -> Mapping[str, Any]:
        """Nested values of `config.json`; fields that were added after the run are missing."""
        config = self._read_required(config_format.read_config, self.path / CONFIG_FILE)
        files.check_content(
            run_files.StoredConfig, config, str(self.path / CONFIG_FILE), files.RESTORE_REMEDY
        )
        return config

    @functools.cached_property
    def run_config(self) -> RunConfig:
        """Validated config with all fields, in the form that training uses."""
        return read_run_config(self.path, self._weights)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.raw_config['method']

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        return self.raw_config['seed']

    @functools.cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks that the run is trained on."""
        data = self.raw_config['data']
        own = self.run_config.data.file_tasks if data.get('files') else ()
        return [*data['tasks'], *(task.name for task in own)]

    @property
    def is_single_task(self) -> bool:
        """True if the run is trained on one task and scored on one."""
        scored = self.raw_config['evaluation']['tasks'] or self.tasks
        return len(self.tasks) == len(scored) == 1

    @property
    def is_finished(self) -> bool:
        """True if the run has finished and therefore has results."""
        return (self.path / run_files.RESULTS_FILE).exists()

    @functools.cached_property
    def results(self) -> Mapping[str, Any]:
        """Content of `results.json`, which only finished runs have."""
        return self._read_required(run_files.read_results, self.path)

    @functools.cached_property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Records of `metrics.jsonl`, one for each step.

        Raises:
            UserError: The file is missing or broken, or has no records.
        """
        records = self._read_required(run_files.read_metrics, self.path / run_files.METRICS_FILE)
        if not records:
            raise UserError(
                f'{self.path} is not a complete run: {run_files.METRICS_FILE} has no records.'
            )
        return records

    @functools.cached_property
    def answers_before(self) -> Sequence[Mapping[str, Any]]:
        """Scored answers of the base model, all tasks; empty if the run has not finished."""
        return self._answers('before')

    @functools.cached_property
    def answers_after(self) -> Sequence[Mapping[str, Any]]:
        """Scored answers of the trained model, all tasks; empty if the run has not finished."""
        return self._answers('after')

    @functools.cached_property
    def checkpoint_steps(self) -> Sequence[int]:
        """Steps of the stored checkpoints; empty if there is no directory of checkpoints."""
        return self._checkpoints[0]

    @property
    def report_step(self) -> int:
        """Step of the checkpoint to report on; 0 if the run has no checkpoint.

        It is the checkpoint with the lowest validation loss, or the newest checkpoint if no
        validation loss was measured.
        """
        return self._checkpoints[1]

    @property
    def checkpoint_directory(self) -> pathlib.Path:
        """Directory of the checkpoints, on the local disk or in cloud storage."""
        return remote_path(self.path / 'checkpoints')

    @functools.cached_property
    def _checkpoints(self) -> tuple[list[int], int]:
        if not self.checkpoint_directory.is_dir():
            return [], 0
        with Checkpoints(self.checkpoint_directory) as checkpoints:
            return checkpoints.steps, checkpoints.best_or_latest_step or 0

    @functools.cached_property
    def seconds_by_activity(self) -> Mapping[str, float]:
        """Seconds that the run spent on each activity, such as training steps or evaluation.

        They are summed over the first start and all resumptions; empty without `goodput.jsonl`.
        """
        exists = (self.path / goodput.FILE).exists()
        return goodput.seconds_by_activity(goodput.read(self.path)) if exists else {}

    @functools.cached_property
    def parameters(self) -> Mapping[str, Any]:
        """Parameter counts of base model and adapter, as `count_model_parameters` returns them."""
        if self.is_finished:
            return self.results['parameters']
        return count_model_parameters(Decoder(self.run_config.model, self.run_config.adapter))

    @functools.cached_property
    def base_identity(self) -> tuple[str, str | None]:
        """Name of the base model, and the fingerprint of its weights (None for older runs)."""
        path = self.path / BASE_FILE
        fingerprint = files.read_json(path, BaseRecord)['fingerprint'] if path.exists() else None
        return self.raw_config['model']['name'], fingerprint

    @functools.cached_property
    def evaluation_setup(self) -> Mapping[str, Any]:
        """Properties that must be equal for the scores and losses of two runs to be comparable.

        `check_comparable` ignores a property that only one run has, such as the scoring of a task
        that the other run is not scored on.
        """
        model, tasks = self.raw_config['model'], self.results['tasks'] if self.is_finished else {}
        setup: dict[str, Any] = {
            'model': tuple(model.get(field, '') for field in ('name', 'weights', 'quantize')),
            'template': self.raw_config['data']['template'],
        }
        for task, result in tasks.items():
            questions = [
                answer['question'] for answer in self.answers_after if answer['task'] == task
            ]
            setup[f'held-out questions of {task}'] = questions
            # The sandbox depends on the machine and does not decide which programs are right.
            scoring = {k: v for k, v in result.get('scoring', {}).items() if k != 'sandbox'}
            setup[f'scoring of {task}'] = scoring
        return setup

    def task_mean(self, key: str) -> float:
        """Return the mean over tasks of a number in `results.json`.

        Args:
            key: Name of the number in each task's results, such as 'loss_after'.
        """
        tasks = self.results['tasks'].values()
        return sum(task[key] for task in tasks) / len(tasks)

    def _answers(self, when: str) -> Sequence[Mapping[str, Any]]:
        if not self.is_finished:
            return ()
        path = self.path / f'answers_{when}.jsonl'
        return self._read_required(run_files.read_answer_rows, path, self.results)

    def _read_required(self, reader: Callable[..., _Content], *arguments: Any) -> _Content:
        """Call a function that reads a required file.

        Raises:
            UserError: The file is missing, or the reader refuses it.
        """
        try:
            return reader(*arguments)
        except FileNotFoundError as error:
            raise UserError(
                f'{self.path} is not a complete run: {error.filename} is missing.'
            ) from error


def read_runs(
    workdirs: Sequence[pathlib.Path], weights: str | None = None, allow_unfinished: bool = False
) -> list[LoadedRun]:
    """Read runs from directories, and check that one report can show them all.

    Example:
        runs = read_runs([pathlib.Path('runs/quickstart')])

    Args:
        workdirs: Directories of runs. If a directory contains several runs, its finished runs are
            read.
        weights: Location of the base model's weights, if they have moved since training.
        allow_unfinished: Whether to accept unfinished runs that `workdirs` names directly.

    Raises:
        UserError: A directory is given twice; there is no run in a directory; a run is unfinished
            and not accepted; a file of a run is missing or broken; or two runs have different base
            models.
    """
    paths = [path for workdir in workdirs for path in _run_directories(workdir)]
    for path, times in Counter(path.resolve() for path in paths).items():
        if times > 1:
            raise UserError(f'--workdir: {path} is given twice.')
    names = Counter(path.name for path in paths)
    runs: list[LoadedRun] = []
    for path in paths:
        name = path.name if names[path.name] == 1 else str(path)
        file_name = _file_name(path.name, [run.file_name for run in runs])
        runs.append(LoadedRun(path, name, file_name, weights))
        _read_report_files(runs[-1], allow_unfinished)
        _check_base(runs[0], runs[-1])
    return runs


def _run_directories(workdir: pathlib.Path) -> list[pathlib.Path]:
    workdir = pathlib.Path(os.path.abspath(workdir))  # Absolute, because '.' has no name.
    if is_adapter(workdir):
        raise UserError(
            f'{workdir} is an exported adapter; --workdir must name the run that it was exported '
            'from.'
        )
    if (workdir / CONFIG_FILE).exists() or (workdir / run_files.RESULTS_FILE).exists():
        return [workdir]
    directories = sorted(path.parent for path in workdir.glob(f'*/{run_files.RESULTS_FILE}'))
    if not directories:
        raise UserError(
            f'{workdir} holds no run: there is no {workdir / CONFIG_FILE}, and no directory in it '
            f'has {run_files.RESULTS_FILE}.'
        )
    return directories


def _read_report_files(run: LoadedRun, allow_unfinished: bool) -> None:
    """Read the files that every report needs, so that a broken run is refused at once."""
    needed = ['raw_config']
    if not run.is_finished and not allow_unfinished:
        raise UserError(
            f'The run in {run.path} has not finished: there is no {run_files.RESULTS_FILE}. Resume '
            'it, or analyze it as it is with --unfinished.'
        )
    if run.report_step:
        needed.append('run_config')
    elif run.checkpoint_directory.is_dir() or not run.is_finished:
        raise UserError(
            f'There is no checkpoint in {run.path / "checkpoints"}: resume the training.'
        )
    for name in (*needed, 'records', 'evaluation_setup', 'answers_before'):
        getattr(run, name)


def _check_base(one: LoadedRun, other: LoadedRun) -> None:
    (name, fingerprint), (other_name, other_fingerprint) = one.base_identity, other.base_identity
    differ = fingerprint and other_fingerprint and fingerprint != other_fingerprint
    if name != other_name or differ:
        raise UserError(
            f'{one.path} and {other.path} have different base models, {name} ({fingerprint}) and '
            f'{other_name} ({other_fingerprint}): analyze them separately.'
        )


def _file_name(name: str, taken: Sequence[str]) -> str:
    """Return a name of letters, digits and dashes that no other run has."""
    plain = re.sub(r'[^a-zA-Z0-9]+', '-', name).strip('-') or 'run'
    return plain if plain not in taken else f'{plain}-{len(taken) + 1}'
