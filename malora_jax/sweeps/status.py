"""How far each run of a sweep is, read from its directory while another process makes it."""

import contextlib
import os
import pathlib
from typing import Any, NamedTuple

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun
from malora_jax.sweeps import directory

# Of metrics.jsonl, enough for its last line.
_TAIL_BYTES = 1 << 16


class Status(NamedTuple):
    """How far a run is.

    Attributes:
        state: 'waiting', 'running', 'finished', 'failed', or 'stopped' (by a signal).
        step: optimizer steps made.
        steps: of the whole run; 0 if they come from its epochs.
        loss: of the last step, or of a finished run the mean over its held-out questions.
        score: of a finished run.
        speed: tokens a second.
        error: why it failed.
    """

    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    score: float | None = None
    speed: float | None = None
    error: str = ''


def read(workdir: pathlib.Path, name: str, state: str, error: str = '', steps: int = 0) -> Status:
    """The status of a run in a sweep's directory.

    Args:
        workdir: of the sweep.
        name: of the run.
        state: what its process does.
        error: why it failed.
        steps: that it is to make.
    """
    if state == 'finished':
        run = LoadedRun(workdir / name)
        steps, score = run.results['steps'], run.results['average']['after']
        return Status(state, steps, steps, run.mean('loss_after'), score)
    last = _last_record(workdir / name / 'metrics.jsonl')
    loss, speed = last.get('loss'), last.get('tokens_per_second')
    return Status(state, last.get('step', 0), steps, loss, None, speed, error)


def last_line(workdir: pathlib.Path, name: str) -> str:
    """What a run printed last: its error, if it failed."""
    path = directory.log_path(workdir, name)
    lines = path.read_text('utf-8', errors='replace').split('\n') if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), 'it printed nothing')


def _last_record(path: pathlib.Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl."""
    try:
        files.check_regular(path)
        with path.open('rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b'\n')[:-1]
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(UserError):
            record = files.parse_json(line, str(path))
            files.check_content(dict[str, float], record, str(path))
            return record
    return {}
