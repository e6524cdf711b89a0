"""Where the wall-clock time of a run went, over all its starts: an event a line.

`goodput.jsonl` has the keys of ml-goodput-measurement, with seconds since 1970: when a job,
the set-up of devices, the preparation, the reading of a batch and other work
(`custom_badput_event_type`) began and ended, and when each step began.
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
# What a phase is called in the summary, and the keys of its events.
_PHASES = {'start': 'tpu_init', 'load': 'training_prep', 'data wait': 'data_loading'}
_CUSTOM = 'custom_badput_event'


class Goodput:
    """Writes the events of one start of a run; those before there is a file wait for it."""

    def __init__(self):
        self._waiting: list[dict[str, Any]] = []
        self._file: Any = None
        self._write({'job_start_time': time.time()})

    def open(self, workdir: pathlib.Path) -> None:
        """Appends to the file of a run from now on, behind its last whole line.

        Raises:
            UserError: the file is broken.
        """
        path = workdir / FILE
        if path.exists():
            read(workdir)  # Which is wanted at the end, and should not fail there.
            os.truncate(path, path.read_bytes().rfind(b'\n') + 1)
        self._file = path.open('a', encoding='utf-8')
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._write(event)

    def close(self) -> None:
        """The run has come to its end, or was stopped in an orderly way."""
        self._write({'job_end_time': time.time()})
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within is no training: 'start', 'load', 'data wait', or anything else."""
        key, more = _PHASES.get(name), {}
        if key is None:
            key, more = _CUSTOM, {f'{_CUSTOM}_type': name}
        self._write(more | {f'{key}_start_time': time.time()})
        yield
        self._write(more | {f'{key}_end_time': time.time()})

    def step(self, number: int) -> None:
        """A step begins."""
        self._write({'step_count': number, 'step_start_time': time.time()})

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            self._waiting.append(event)
            return
        self._file.write(json.dumps(event) + '\n')
        self._file.flush()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a run; a last line that is not whole is left out.

    Raises:
        UserError: a line is no event.
    """
    path = workdir / FILE
    remedy = f'remove {path}, which only tells where time went'
    events = files.read_json_lines(path, dict[str, float | str], remedy)
    for number, event in enumerate(events, start=1):
        times = [key for key in event if key.endswith('_time')]
        strange = {'step_count', f'{_CUSTOM}_type'} & event.keys()
        texts = {key for key, value in event.items() if isinstance(value, str)}
        if len(times) != 1 or len(event) != 1 + len(strange) or texts - {f'{_CUSTOM}_type'}:
            raise UserError(f'{path}:{number} is no event with its time: {remedy}.')
    return events


def accounts(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by what they went into; together all between the first event and the last.

    Returns:
        `step`, each phase by its name, `lost` (steps that were made again after a restart),
        `stopped` (between two starts) and `other`.
    """
    spent: dict[str, float] = {'step': 0.0, 'lost': 0.0, 'stopped': 0.0, 'other': 0.0}
    steps: dict[int, float] = {}
    names = {key: name for name, key in _PHASES.items()}
    phases: list[str] = []  # The innermost is the last.
    step, before = None, None
    for event in events:
        now = next(value for key, value in event.items() if key.endswith('_time'))
        # A clock may have been set back.
        passed, before = max(0.0, now - (now if before is None else before)), now
        if 'job_start_time' in event:
            spent['stopped'] += passed
            phases, step = [], None
            continue
        if phases:
            spent[phases[-1]] = spent.get(phases[-1], 0.0) + passed
        elif step is not None:
            steps[step] += passed
        else:
            spent['other'] += passed
        if 'step_count' in event:
            step = event['step_count']
            spent['lost'] += steps.get(step, 0.0)
            steps[step] = 0.0
            continue
        key = next(key for key in event if key.endswith('_time'))
        base = key.removesuffix('_start_time').removesuffix('_end_time')
        name = event.get(f'{_CUSTOM}_type', names.get(base, base))
        if key.endswith('_start_time'):
            phases.append(name)
        elif phases:
            phases.pop()
    spent['step'] = sum(steps.values())
    return spent


def describe(spent: dict[str, float]) -> str:
    """One line."""
    total = sum(spent.values())
    rest = sorted(
        ((name, value) for name, value in spent.items() if name != 'step' and value >= 0.05),
        key=lambda each: -each[1],
    )
    parts = ', '.join(f'{name} {value:,.1f}' for name, value in rest)
    share = spent['step'] / total if total else 0.0
    return (
        f'Goodput {share:.0%}: {spent["step"]:,.1f} of {total:,.1f} s went into steps'
        + (f'; {parts}' if parts else '')
        + '.'
    )
