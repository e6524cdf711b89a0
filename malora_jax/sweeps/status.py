"""Status of each run of a sweep, read from its directory while another process trains it."""

import contextlib
import os
import pathlib
from typing import Any, NamedTuple

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun
from malora_jax.sweeps import directory

# Number of bytes at the end of metrics.jsonl that surely contain its last line.
_TAIL_BYTES = 1 << 16


class RunStatus(NamedTuple):
    """Status of a run.

    Attributes:
        state: State: 'waiting', 'running', 'finished', 'failed', or 'stopped' (by a signal).
        step: Number of optimizer steps made.
        steps: Total number of steps; 0 if it follows from the number of epochs.
        loss: Training loss of the last step; for a finished run, the mean held-out loss over tasks.
        score: Mean score over tasks of a finished run, 0 to 1.
        tokens_per_second: Throughput in tokens per second.
        error: Error message of a failed run.
    """

    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    score: float | None = None
    tokens_per_second: float | None = None
    error: str = ''


def read(
    workdir: pathlib.Path, name: str, state: str, error: str = '', steps: int = 0
) -> RunStatus:
    """Read the status of a run from a sweep's directory.

    Args:
        workdir: Directory of the sweep.
        name: Name of the run.
        state: State of its process, as in `RunStatus`.
        error: Error message if the run failed.
        steps: Total number of steps; 0 if it is not known.
    """
    if state == 'finished':
        run = LoadedRun(workdir / name)
        steps, score = run.results['steps'], run.results['average']['after']
        return RunStatus(state, steps, steps, run.task_mean('loss_after'), score)
    last = _last_record(workdir / name / 'metrics.jsonl')
    loss, speed = last.get('loss'), last.get('tokens_per_second')
    return RunStatus(state, last.get('step', 0), steps, loss, None, speed, error)


def last_log_line(workdir: pathlib.Path, name: str) -> str:
    """Return the last line that a run printed; for a failed run, that is its error message.

    Args:
        workdir: Directory of the sweep.
        name: Name of the run.
    """
    path = directory.log_path(workdir, name)
    lines = path.read_text('utf-8', errors='replace').split('\n') if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), 'it printed nothing')


def _last_record(path: pathlib.Path) -> dict[str, Any]:
    """Return the last complete record of a `metrics.jsonl`, or {}."""
    try:
        files.check_regular_file(path)
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
