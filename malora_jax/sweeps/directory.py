"""A sweep's directory: a directory for each run, and beside them what the sweep itself knows.

NAME/                the runs, as experiments.train makes them
sweep.json           which runs there are
sweep/configs/       the config of each run
sweep/logs/          what each run printed
report.md, runs.csv, *.png
"""

import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.sweeps.expand import SweepRun
from malora_jax.training.config_format import write_config
from malora_jax.training.identity import LENGTH, SCORING, another_run
from malora_jax.training.workdir import CONFIG, check_run

_RECORD = 'sweep.json'
# What there may be before it, if a sweep was killed as it began.
_FIRST = ('.lock', 'sweep')


class _Record(TypedDict):
    runs: dict[str, Any]


def check(workdir: pathlib.Path, runs: Mapping[str, SweepRun]) -> None:
    """Checks that a directory is free, or holds this sweep or a part of it.

    A sweep may grow: with more seeds or values it goes on in the same directory.

    Raises:
        UserError: it holds another sweep, or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir: {workdir} is not a directory.')
    if not (workdir / _RECORD).exists():
        if workdir.is_dir() and any(path.name not in _FIRST for path in workdir.iterdir()):
            raise UserError(f'{workdir} is not empty and holds no sweep: choose another --workdir.')
        return
    others = [
        name for name in files.read_json(workdir / _RECORD, _Record)['runs'] if name not in runs
    ]
    if others:
        raise UserError(
            f'{workdir} holds another sweep, with a run {others[0]}: continue that one with its '
            'own config, or choose another --workdir.'
        )
    for name, run in runs.items():
        if (workdir / name / CONFIG).exists():
            changes = check_run(workdir / name, run.config, None)
            # The runs of a sweep differ in nothing but what it sweeps over.
            if wrong := [change for change in changes if change.is_one_of((*LENGTH, *SCORING))]:
                raise another_run(workdir / name, wrong[0].field)


def write(workdir: pathlib.Path, base: str, runs: Mapping[str, SweepRun]) -> None:
    """Writes what there is to know of the runs, each one's config before the list of all."""
    for folder in ('configs', 'logs'):
        (workdir / 'sweep' / folder).mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        write_config(config_path(workdir, name), run.config)
    described = {name: {'seed': run.seed, 'values': run.values} for name, run in runs.items()}
    files.write_json(workdir / _RECORD, {'base': base, 'runs': described})


def config_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the config of a run is."""
    return workdir / 'sweep' / 'configs' / f'{name}.json'


def log_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Where what a run prints goes."""
    return workdir / 'sweep' / 'logs' / f'{name}.txt'


def is_finished(workdir: pathlib.Path, name: str) -> bool:
    """Whether a run has come to its end."""
    return (workdir / name / 'results.json').exists()
