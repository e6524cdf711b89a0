"""The runs that a report is about, read from their directories."""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.export.adapter import is_adapter
from malora_jax.training import goodput, run_files
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig
from malora_jax.training.restore import config_of
from malora_jax.training.workdir import BASE, BaseRecord


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run, without its weights.

    Attributes:
        name: its directory's, or the whole path where two are called the same.
        file_name: what the names of its plots begin with.
        path: of its directory.
        run: its config.
        step: of the checkpoint that stands for it: the best by validation loss, or the newest.
        steps: of all checkpoints that there are.
        records: of metrics.jsonl.
        results: of results.json; None if the run has not ended.
        answers: of answers_after.jsonl; empty if it has not ended.
        spent: seconds by what they went into; empty without goodput.jsonl.
    """

    name: str
    file_name: str
    path: pathlib.Path
    run: RunConfig
    step: int
    steps: Sequence[int]
    records: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None
    answers: Sequence[Mapping[str, Any]]
    spent: Mapping[str, float]

    @property
    def tasks(self) -> list[str]:
        """The tasks that it is trained on."""
        section = self.run.data
        return [*section.tasks, *(task.name for task in section.file_tasks)]


def read_subjects(
    workdirs: Sequence[pathlib.Path], weights: str | None, unfinished: bool
) -> list[Subject]:
    """Reads runs.

    Args:
        workdirs: their directories.
        weights: where the base's weights are, if not where they were in training.
        unfinished: whether a run may have no results yet.

    Raises:
        UserError: a directory is given twice or holds no run, an unfinished one, or one without a
            checkpoint; a file of a run is missing or broken; or two have different bases.
    """
    paths = [path.resolve() for path in workdirs]
    names = Counter(path.name for path in paths)
    for path, times in Counter(paths).items():
        if times > 1:
            raise UserError(f'--workdir: {path} is given twice.')
    subjects: list[Subject] = []
    for path in paths:
        name = path.name if names[path.name] == 1 else str(path)
        file_name = _file_name(path.name, [each.file_name for each in subjects])
        subjects.append(_read(path, (name, file_name), weights, unfinished))
    for other in subjects[1:]:
        _check_base(subjects[0], other)
    return subjects


def _file_name(name: str, taken: Sequence[str]) -> str:
    """A name of letters, digits and dashes that no other run has."""
    plain = re.sub(r'[^a-zA-Z0-9]+', '-', name).strip('-') or 'run'
    return plain if plain not in taken else f'{plain}-{len(taken) + 1}'


def _read(
    path: pathlib.Path, names: tuple[str, str], weights: str | None, unfinished: bool
) -> Subject:
    if is_adapter(path):
        raise UserError(f'{path} is an exported adapter; --workdir must name the run it is from.')
    run = config_of(path, weights)
    finished = (path / 'results.json').exists()
    if not finished and not unfinished:
        raise UserError(
            f'The run in {path} has not ended: there is no results.json. Continue it, or analyse '
            'what it has so far with --unfinished.'
        )
    with Checkpoints(path / 'checkpoints') as checkpoints:
        steps, step = checkpoints.steps, checkpoints.chosen_step
    if step is None:
        raise UserError(f'There is no checkpoint in {path / "checkpoints"}: train on.')
    try:
        results = run_files.read_results(path) if finished else None
        return Subject(
            *names,
            path,
            run,
            step,
            steps,
            run_files.read_metrics(path / run_files.METRICS),
            results,
            run_files.answer_rows(path / 'answers_after.jsonl', results) if results else (),
            goodput.accounts(goodput.read(path)) if (path / goodput.FILE).exists() else {},
        )
    except FileNotFoundError as error:
        raise UserError(f'{path} is no whole run: {error.filename} is missing.') from error


def _check_base(one: Subject, other: Subject) -> None:
    names = one.run.model.name, other.run.model.name
    prints = [_fingerprint(each) for each in (one, other)]
    # Runs older than fingerprints have none.
    if names[0] != names[1] or (all(prints) and prints[0] != prints[1]):
        described = ' and '.join(f'{n} ({p})' for n, p in zip(names, prints, strict=True))
        raise UserError(
            f'{one.path} and {other.path} have different bases, {described}: analyse them apart.'
        )


def _fingerprint(subject: Subject) -> str | None:
    path = subject.path / BASE
    return files.read_json(path, BaseRecord)['fingerprint'] if path.exists() else None
