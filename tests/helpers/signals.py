"""Commands of tiny runs that receive signals, and the state that they leave."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from malora_jax import files
from malora_jax.errors import UserError
from tests.helpers.metric_records import without_times
from tests.helpers.paths import ROOT
from tests.helpers.sums_task import write_sums_task, write_sweep

SWEEP_RUN_NAMES = ('malora-seed0', 'malora-seed1')
# Mean seconds between the signals of a burst, from almost simultaneous to long enough that the
# process is already ending or saving.
_BURSTS = (0.002, 0.05, 0.5)
# Signs of a crash in the output of a command.
CRASHES = ('Traceback', 'Fatal Python error', 'Exception ignored', 'Segmentation fault')


def make_home(
    home: pathlib.Path, steps: int, checkpoint_every: int, evaluate_every: int
) -> pathlib.Path:
    """Write weights, data, prompts, base.py (config of a run) and sweep.py (two seeds)."""
    home.mkdir(parents=True, exist_ok=True)
    write_sums_task(home, steps, checkpoint_every, evaluate_every)
    prompts = [json.dumps({'prompt': f'{n} + 2?'}) + '\n' for n in range(12)]
    (home / 'prompts.jsonl').write_text(''.join(prompts))
    write_sweep(home / 'sweep.py', seeds=(0, 1))
    return home


class RunningCommand:
    """A running command, as the leader of its own process group."""

    def __init__(self, command: str, *arguments: str):
        # Files, not pipes: a leftover child of a crashed command may hold a pipe open.
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # See __exit__.
        self.process = subprocess.Popen(
            [sys.executable, '-m', f'experiments.{command}', *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in self._files:
            file.close()

    @property
    def stdout(self) -> str:
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    def send(self, number: int, times: int = 1, pause: float = 0.0) -> None:
        """Send a signal several times, as long as the process lives."""
        for _ in range(times):
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            time.sleep(pause)

    def wait_for(self, condition, timeout: float = 300.0) -> None:
        """Wait until a condition holds; fail if the process ends first or it takes too long."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f'It ended: {self.stderr or self.stdout}'
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait(self, timeout: float = 300.0) -> int:
        """Wait for the process, check that it has not crashed, and return its exit status."""
        status = self.process.wait(timeout)
        for sign in CRASHES:
            assert sign not in self.stdout + self.stderr, self.stdout + self.stderr
        return status

    def handles_sigterm(self) -> bool:
        """Return whether the process handles SIGTERM, read from /proc.

        Without /proc, wait half a second and return True.
        """
        status = pathlib.Path(f'/proc/{self.process.pid}/status')
        if not status.exists():
            time.sleep(0.5)
            return True
        line = next(line for line in status.read_text().splitlines() if line[:6] == 'SigCgt')
        return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def _read(self, number: int) -> str:
        descriptor = self._files[number].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


def run_undisturbed(command: str, *arguments: str) -> tuple[str, float]:
    """Run a command without signals.

    Returns:
        Output of the command, and the seconds that it ran after it began to handle signals.
    """
    with RunningCommand(command, *arguments) as process:
        process.wait_for(process.handles_sigterm)
        began = time.monotonic()
        assert process.wait() == 0, process.stderr
        return process.stdout, time.monotonic() - began


class SignalledCommand(NamedTuple):
    """Result of a command that received signals and was restarted until it finished.

    Attributes:
        stdout: Output of the last process, which got no signal.
        statuses: Exit status of each process that got signals.
        signals: Number of signals of each process that got any.
    """

    stdout: str
    statuses: list[int]
    signals: list[int]


def run_with_sigterms(
    rng: random.Random, seconds: float, expected: Sequence[int], command: str, *arguments: str
) -> SignalledCommand:
    """Run a command, restarted until it finishes, and send it one to five SIGTERMs.

    Args:
        rng: Random generator of the times.
        seconds: Duration of the undisturbed command.
        expected: Exit statuses that a process with a signal may have.
        command: Name of the command.
        *arguments: Arguments of the command.
    """
    moments = _signal_times(rng, seconds)
    print(f'{command}: SIGTERM after {", ".join(f"{moment:.3f}" for moment in moments)} s')
    statuses: list[int] = []
    signals: list[int] = []
    passed = 0.0
    while True:
        with RunningCommand(command, *arguments) as process:
            process.wait_for(process.handles_sigterm)
            began, got = time.monotonic(), 0
            while process.process.poll() is None:
                if moments and passed + time.monotonic() - began >= moments[0]:
                    process.send(signal.SIGTERM)
                    moments.pop(0)
                    got += 1
                time.sleep(0.001)
            passed += time.monotonic() - began
            status = process.wait()
            print(f'{got} signals in {time.monotonic() - began:.3f} s: status {status}', flush=True)
            assert status in (expected if got else [0]), process.stderr + process.stdout
            if not got:
                return SignalledCommand(process.stdout, statuses, signals)
            statuses.append(status)
            signals.append(got)


def _signal_times(rng: random.Random, seconds: float) -> list[float]:
    """Return when to send one to five signals, in seconds: spread out, or in a burst."""
    count, first = rng.randint(1, 5), rng.uniform(0, seconds)
    if rng.random() < 0.5:
        return sorted([first, *(rng.uniform(0, seconds) for _ in range(count - 1))])
    rate = 1 / rng.choice(_BURSTS)
    gaps = [rng.expovariate(rate) for _ in range(count - 1)]
    return list(itertools.accumulate([first, *gaps]))


def sweep_arguments(home: pathlib.Path, workdir: pathlib.Path, **flags: object) -> list[str]:
    """Return the arguments of experiments.sweep."""
    given = (f'--{name}={value}' for name, value in flags.items())
    return [f'--config={home}/sweep.py', f'--workdir={workdir}', *given]


def is_unlocked(workdir: pathlib.Path) -> bool:
    """Return whether no process holds the lock of a run's directory."""
    try:
        with files.lock_directory(workdir, 'It is not.'):
            return True
    except UserError:
        return False


def steps_made(workdir: pathlib.Path) -> int:
    """Return the number of steps in a run's metrics.jsonl."""
    path = workdir / 'metrics.jsonl'
    return len(files.read_json_lines(path)) if path.exists() else 0


def newest_checkpoint(workdir: pathlib.Path) -> int:
    """Return the step of a run's newest checkpoint; 0 if there is none."""
    return max((int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*')), default=0)


def read_outcome(workdir: pathlib.Path) -> tuple[list[dict], list[np.ndarray], dict]:
    """Return a finished run's metrics without times, its final state, and its scores."""
    from orbax.checkpoint import v1 as ocp

    records = without_times(files.read_json_lines(workdir / 'metrics.jsonl'))
    newest = workdir / 'checkpoints' / str(newest_checkpoint(workdir))
    state = jax.tree.leaves(ocp.load_checkpointables(newest, {'state': None})['state'])
    return records, state, files.read_json(workdir / 'results.json')['tasks']


def assert_same_outcome(workdir: pathlib.Path, undisturbed: pathlib.Path) -> None:
    """Check that two finished runs are bitwise equal."""
    (records, state, tasks), expected = read_outcome(workdir), read_outcome(undisturbed)
    assert records == expected[0]
    assert len(state) == len(expected[1])
    for ours, theirs in zip(state, expected[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tasks == expected[2]
