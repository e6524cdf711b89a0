"""Goodput: the share of a run's wall-clock time spent in training steps, over all its starts.

`goodput.jsonl` has one event per line, with the keys of ml-goodput-measurement and times in seconds
since 1970. An event marks the start of a training step, or the start or end of an activity.
Activities are the whole job, device initialization, training preparation, loading a batch, and
custom activities, which are named by `custom_badput_event_type`.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from malora_jax import files
from malora_jax.errors import UserError

FILE = 'goodput.jsonl'
# Event keys of ml-goodput-measurement by phase, as phases are named in the summary.
_PHASES = {'start': 'tpu_init', 'load': 'training_prep', 'data wait': 'data_loading'}
_CUSTOM = 'custom_badput_event'


class GoodputRecorder:
    """Recorder of the events from which goodput is computed.

    It records the start of each training step, and the start and end of all other activities. If a
    run is stopped and resumed, each of these processes has its own recorder.

    Events are buffered until `open` is called:

        recorder = GoodputRecorder()
        with recorder.phase('load'):
            ...
        recorder.open(workdir)
        recorder.record_step(1)
        recorder.close()
    """

    def __init__(self):
        self._buffer: list[dict[str, Any]] = []
        self._file: Any = None
        self._write({'job_start_time': time.time()})

    def open(self, workdir: pathlib.Path) -> None:
        """Open `goodput.jsonl` for appending, and write the buffered events.

        An incomplete last line, as a killed run may leave it, is removed.

        Args:
            workdir: Directory of the run.

        Raises:
            UserError: The file is invalid.
        """
        path = workdir / FILE
        if path.exists():
            read(workdir)  # Find errors now, because the end of the run reads the file again.
            os.truncate(path, path.read_bytes().rfind(b'\n') + 1)
        self._file = path.open('a', encoding='utf-8')
        waiting, self._buffer = self._buffer, []
        for event in waiting:
            self._write(event)

    def close(self) -> None:
        """Record the end of the job, and close the file."""
        self._write({'job_end_time': time.time()})
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the start and end of an activity other than training steps.

        Args:
            name: Name of the activity: 'start', 'load', 'data wait', or any other name, which is
                recorded as a custom event.
        """
        key, more = _PHASES.get(name), {}
        if key is None:
            key, more = _CUSTOM, {f'{_CUSTOM}_type': name}
        self._write(more | {f'{key}_start_time': time.time()})
        yield
        self._write(more | {f'{key}_end_time': time.time()})

    def record_step(self, number: int) -> None:
        """Record the start of a training step.

        Args:
            number: Number of the step.
        """
        self._write({'step_count': number, 'step_start_time': time.time()})

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            self._buffer.append(event)
            return
        self._file.write(json.dumps(event) + '\n')
        self._file.flush()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the events of a run, without an incomplete last line.

    Args:
        workdir: Directory of the run.

    Raises:
        UserError: A line is not a valid event.
    """
    path = workdir / FILE
    remedy = f'remove {path}, which only records how time was spent'
    events = files.read_json_lines(path, dict[str, float | str], remedy)
    for number, event in enumerate(events, start=1):
        times = [key for key in event if key.endswith('_time')]
        strange = {'step_count', f'{_CUSTOM}_type'} & event.keys()
        texts = {key for key, value in event.items() if isinstance(value, str)}
        if len(times) != 1 or len(event) != 1 + len(strange) or texts - {f'{_CUSTOM}_type'}:
            raise UserError(f'{path}:{number} is not a valid goodput event: {remedy}.')
    return events


def seconds_by_activity(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each activity, which sum to the time from the first to the last event.

    Args:
        events: Events of a run, as `read` returns them.

    Returns:
        Seconds by activity: `step`, each phase by its name, `lost` (steps that were repeated after
        a restart), `stopped` (between two starts) and `other`.
    """
    seconds: dict[str, float] = {'step': 0.0, 'lost': 0.0, 'stopped': 0.0, 'other': 0.0}
    steps: dict[int, float] = {}
    names = {key: name for name, key in _PHASES.items()}
    phases: list[str] = []  # Phases may be nested; the innermost is the last.
    step, before = None, None
    for event in events:
        now = next(value for key, value in event.items() if key.endswith('_time'))
        # The system clock may have been set back between two events.
        passed, before = max(0.0, now - (now if before is None else before)), now
        if 'job_start_time' in event:
            seconds['stopped'] += passed
            phases, step = [], None
            continue
        if phases:
            seconds[phases[-1]] = seconds.get(phases[-1], 0.0) + passed
        elif step is not None:
            steps[step] += passed
        else:
            seconds['other'] += passed
        if 'step_count' in event:
            step = event['step_count']
            seconds['lost'] += steps.get(step, 0.0)
            steps[step] = 0.0
            continue
        key = next(key for key in event if key.endswith('_time'))
        base = key.removesuffix('_start_time').removesuffix('_end_time')
        name = event.get(f'{_CUSTOM}_type', names.get(base, base))
        if key.endswith('_start_time'):
            phases.append(name)
        elif phases:
            phases.pop()
    seconds['step'] = sum(steps.values())
    return seconds


def describe(seconds: dict[str, float]) -> str:
    """Return one line with the goodput and the seconds of all other activities.

    Args:
        seconds: Seconds by activity, as `seconds_by_activity` returns them.
    """
    total = sum(seconds.values())
    rest = sorted(
        ((name, value) for name, value in seconds.items() if name != 'step' and value >= 0.05),
        key=lambda each: -each[1],
    )
    parts = ', '.join(f'{name} {value:,.1f}' for name, value in rest)
    share = seconds['step'] / total if total else 0.0
    return (
        f'Goodput {share:.0%}: training steps took {seconds["step"]:,.1f} of {total:,.1f} s'
        + (f'; {parts}' if parts else '')
        + '.'
    )
