"""Layout of a sweep's directory: one directory for each run, and the files of the sweep itself.

NAME/                run directory, as experiments.train writes it
sweep.json           list of the runs
sweep/configs/       config of each run
sweep/logs/          printed output of each run
report.md            report on the finished runs, with runs.csv and plots (*.png)
"""

import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun
from malora_jax.sweeps.expand import SweepRun
from malora_jax.training.config_format import write_config
from malora_jax.training.identity import LENGTH_FIELDS, SCORING_FIELDS, another_run_error
from malora_jax.training.workdir import CONFIG_FILE, check_run

_RUN_LIST = 'sweep.json'
# Entries that may exist without the list of runs, if a sweep was killed at its start.
_START_ENTRIES = ('.lock', 'sweep')


class _RunList(TypedDict):
    runs: dict[str, Any]


def check(workdir: pathlib.Path, runs: Mapping[str, SweepRun]) -> None:
    """Check that a directory is free, or holds this sweep or a part of it.

    A sweep may grow: a config with more seeds or values continues in the same directory.

    Args:
        workdir: Directory of the sweep.
        runs: Runs of the sweep by name.

    Raises:
        UserError: The directory holds another sweep or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir: {workdir} is not a directory.')
    if not (workdir / _RUN_LIST).exists():
        if workdir.is_dir() and any(path.name not in _START_ENTRIES for path in workdir.iterdir()):
            raise UserError(f'{workdir} is not empty and holds no sweep: choose another --workdir.')
        return
    others = [
        name for name in files.read_json(workdir / _RUN_LIST, _RunList)['runs'] if name not in runs
    ]
    if others:
        raise UserError(
            f'{workdir} holds another sweep, with a run {others[0]}: resume that one with its '
            'own config, or choose another --workdir.'
        )
    for name, run in runs.items():
        if (workdir / name / CONFIG_FILE).exists():
            changes = check_run(workdir / name, run.config, None)
            # `check_run` allows these changes in a single run. In a sweep they are an error,
            # because its runs may differ only in the swept fields.
            if wrong := [
                change for change in changes if change.is_one_of((*LENGTH_FIELDS, *SCORING_FIELDS))
            ]:
                raise another_run_error(workdir / name, wrong[0].field)


def write(workdir: pathlib.Path, base: str, runs: Mapping[str, SweepRun]) -> None:
    """Write the config of each run, and then the list of all runs.

    Args:
        workdir: Directory of the sweep.
        base: Path of the config file from which all runs start.
        runs: Runs of the sweep by name.
    """
    for folder in ('configs', 'logs'):
        (workdir / 'sweep' / folder).mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        write_config(config_path(workdir, name), run.config)
    described = {name: {'seed': run.seed, 'values': run.values} for name, run in runs.items()}
    files.write_json(workdir / _RUN_LIST, {'base': base, 'runs': described})


def config_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of the JSON file with a run's config.

    Example:
        config_path(pathlib.Path('runs'), 'malora-seed0')  # runs/sweep/configs/malora-seed0.json

    Args:
        workdir: Directory of the sweep.
        name: Name of the run.
    """
    return workdir / 'sweep' / 'configs' / f'{name}.json'


def log_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of the log with a run's printed output."""
    return workdir / 'sweep' / 'logs' / f'{name}.txt'


def is_finished(workdir: pathlib.Path, name: str) -> bool:
    """Return whether a run has finished and therefore has results."""
    return LoadedRun(workdir / name).is_finished
