"""Makes the runs of a sweep, each in a process of its own, several at a time if wanted.

What has finished is skipped and what was interrupted goes on, as `experiments.train` does by
itself. What fails is tried once more, alone; if it fails again the others go on without it. When
this process ends, even by SIGKILL, the others save and end, too.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from malora_jax import shutdown
from malora_jax.shutdown import Preempted
from malora_jax.sweeps import directory, status
from malora_jax.sweeps.status import Status

# How long a process may take to save when the sweep is stopped.
_GRACE_SECONDS = 120
_TRIES = 2


class Job(NamedTuple):
    """A process to be started.

    Attributes:
        names: of the runs that it makes.
        command: that makes them.
    """

    names: tuple[str, ...]
    command: Sequence[str]


class _Process(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    logs: contextlib.ExitStack
    gpu: str


class Runner:
    """Starts processes and follows them.

    Attributes:
        states: by run, as in `Status`.
        errors: by run that failed, why.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: Mapping[str, int],
        alone: Callable[[str], Sequence[str]],
        at_once: int = 1,
        gpus: Sequence[str] = (),
        poll_seconds: float = 0.5,
    ):
        """Looks at what there is.

        Args:
            workdir: of the sweep.
            steps: by run, as in `Status`.
            alone: the command that makes one run.
            at_once: how many processes at the same time.
            gpus: numbers of GPUs, of which each process gets one, if there are any.
            poll_seconds: how often they are looked at.
        """
        self._workdir, self._steps, self._alone = workdir, steps, alone
        self._at_once, self._poll_seconds = at_once, poll_seconds
        self._free_gpus = list(gpus)
        self._tries = dict.fromkeys(steps, 0)
        self._finished: dict[str, Status] = {}
        self.errors: dict[str, str] = {}
        self.states = {
            name: 'finished' if directory.is_finished(workdir, name) else 'waiting'
            for name in steps
        }

    def run(self, jobs: Sequence[Job], show: Callable[[Mapping[str, Status]], None]) -> None:
        """Makes all runs of the jobs that are not finished.

        Args:
            jobs: in the order in which they are started.
            show: is given the status of all runs, again and again.

        Raises:
            Preempted: SIGTERM came; what was at work was stopped likewise, and has saved.
            KeyboardInterrupt: The same after Ctrl-C.
            OSError: A process did not save in time and was killed.
        """
        queue, active = list(jobs), list[_Process]()
        signals = shutdown.deferred(signal.SIGTERM, signal.SIGINT)
        with shutdown.watched(), signals, shutdown.lifeline() as lifeline:
            try:
                while (queue or active) and not shutdown.requested():
                    while queue and len(active) < self._at_once:
                        active.append(self._start(queue.pop(0), *lifeline))
                    show(self.statuses())
                    time.sleep(self._poll_seconds)
                    for one in [one for one in active if one.process.poll() is not None]:
                        active.remove(one)
                        queue += self._ended(one)
            finally:
                killed = self._stop(active)
                show(self.statuses())
            if killed:
                raise OSError(
                    f'{", ".join(killed)} did not save within {_GRACE_SECONDS} s and was killed; '
                    'the same command resumes from the checkpoints before.'
                )
            if shutdown.requested() == signal.SIGINT:
                raise KeyboardInterrupt
            if shutdown.requested():
                raise Preempted

    def statuses(self) -> dict[str, Status]:
        """Of all runs."""
        found = {}
        for name, state in self.states.items():
            if name in self._finished:
                found[name] = self._finished[name]
                continue
            error = self.errors.get(name, '')
            found[name] = status.read(self._workdir, name, state, error, self._steps[name])
            if state == 'finished':
                self._finished[name] = found[name]
        return found

    def _start(self, job: Job, descriptor: int, environment: Mapping[str, str]) -> _Process:
        """Starts a process that inherits the lifeline's descriptor and environment."""
        logs = contextlib.ExitStack()
        # Of several runs the first one's has it all; what became of each stands in its own.
        log: IO[Any] = logs.enter_context(
            directory.log_path(self._workdir, job.names[0]).open('ab')
        )
        gpu = self._free_gpus.pop(0) if self._free_gpus else ''
        # Unbuffered, so that lines of stdout and stderr stand in the log in their order: the last
        # one of a run that failed says why.
        own = {'PYTHONUNBUFFERED': '1'} | ({'CUDA_VISIBLE_DEVICES': gpu} if gpu else {})
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **own},
            pass_fds=[descriptor],
            # A terminal's Ctrl-C reaches this process only, which asks the others to save.
            process_group=0,
        )
        for name in job.names:
            self.states[name] = 'running'
            self._tries[name] += 1
        return _Process(job, process, logs, gpu)

    def _ended(self, ended: _Process) -> list[Job]:
        """Notes what became of the runs; those that are to be tried again."""
        ended.logs.close()
        if ended.gpu:
            self._free_gpus.append(ended.gpu)
        again = []
        for name in ended.job.names:
            if directory.is_finished(self._workdir, name):
                self.states[name] = 'finished'
            elif ended.process.returncode == 0:
                self.states[name] = 'stopped'
            elif self._tries[name] < _TRIES:
                self.states[name] = 'waiting'
                again.append(Job((name,), self._alone(name)))
            else:
                self.states[name] = 'failed'
                self.errors[name] = self._error(name, ended.process.returncode)
        return again

    def _error(self, name: str, returncode: int) -> str:
        if returncode < 0:
            return f'killed by {signal.Signals(-returncode).name}'
        return status.last_line(self._workdir, name)

    def _stop(self, active: list[_Process]) -> list[str]:
        """Asks processes to save and end; returns the runs of those that had to be killed."""
        killed: list[str] = []
        for one in active:
            one.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for one in active:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
                killed += one.job.names
            one.logs.close()
            for name in one.job.names:
                done = directory.is_finished(self._workdir, name)
                self.states[name] = 'finished' if done else 'stopped'
        return killed
