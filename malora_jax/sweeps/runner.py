"""Runner of a sweep: trains its runs in child processes, several at a time if requested.

Finished runs are skipped, and interrupted runs resume from their checkpoints, as in
`experiments.train`. A failed run is tried once more, alone; if it fails again, the other runs
continue without it. When this process ends, even by SIGKILL, its child processes save and end too.
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
from malora_jax.sweeps.status import RunStatus

# Seconds that a process may take to save when the sweep is stopped.
_GRACE_SECONDS = 120
_MAX_ATTEMPTS = 2


class Job(NamedTuple):
    """A process to be started.

    Attributes:
        names: Names of the runs that it trains.
        command: Command line of the process.
    """

    names: tuple[str, ...]
    command: Sequence[str]


class _ActiveJob(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    logs: contextlib.ExitStack
    gpu: str


class Runner:
    """Runner that starts the processes of a sweep and monitors them.

    Attributes:
        states: State of each run by name, as in `RunStatus`.
        errors: Error messages of the failed runs by name.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: Mapping[str, int],
        single_run_command: Callable[[str], Sequence[str]],
        max_processes: int = 1,
        gpus: Sequence[str] = (),
        poll_seconds: float = 0.5,
        on_start: Callable[[str], None] = lambda name: None,
        on_finished: Callable[[str], None] = lambda name: None,
    ):
        """Find out which runs are already finished.

        Args:
            workdir: Directory of the sweep.
            steps: Number of training steps of each run by name; 0 if the config sets epochs.
            single_run_command: Function that maps the name of a run to the command line that trains
                it alone.
            max_processes: Maximum number of concurrent processes.
            gpus: Numbers of GPUs; each process gets one of them. () for no assignment.
            poll_seconds: Seconds between checks of the processes.
            on_start: Function that is called with the name of each run before its process starts.
            on_finished: Function that is called with the name of each run that finishes.
        """
        self._workdir, self._steps, self._single_run_command = workdir, steps, single_run_command
        self._max_processes, self._poll_seconds = max_processes, poll_seconds
        self._on_start, self._on_finished = on_start, on_finished
        self._free_gpus = list(gpus)
        self._attempts = dict.fromkeys(steps, 0)
        self._finished: dict[str, RunStatus] = {}
        self.errors: dict[str, str] = {}
        self.states = {
            name: 'finished' if directory.is_finished(workdir, name) else 'waiting'
            for name in steps
        }

    def run(self, jobs: Sequence[Job], show: Callable[[Mapping[str, RunStatus]], None]) -> None:
        """Complete all runs of the jobs that are not finished.

        Args:
            jobs: Jobs in the order in which they are started.
            show: Function that is called repeatedly with the status of all runs.

        Raises:
            Preempted: SIGTERM arrived; running processes were stopped and have saved.
            KeyboardInterrupt: Ctrl-C was pressed; running processes were stopped and have saved.
            OSError: A process did not save in time and was killed.
        """
        queue, active = list(jobs), list[_ActiveJob]()
        signals = shutdown.defer_signals(signal.SIGTERM, signal.SIGINT)
        with shutdown.raise_on_sigterm(), signals, shutdown.parent_pipe() as parent_pipe:
            try:
                while (queue or active) and not shutdown.requested_signal():
                    while queue and len(active) < self._max_processes:
                        active.append(self._start(queue.pop(0), *parent_pipe))
                    show(self.statuses())
                    time.sleep(self._poll_seconds)
                    for one in [one for one in active if one.process.poll() is not None]:
                        active.remove(one)
                        queue += self._record_end(one)
            finally:
                killed = self._stop(active)
                show(self.statuses())
            if killed:
                raise OSError(
                    f'{", ".join(killed)}: not saved within {_GRACE_SECONDS} s, so the process was '
                    'killed; run the same command again to resume from the last checkpoint.'
                )
            if shutdown.requested_signal() == signal.SIGINT:
                raise KeyboardInterrupt
            if shutdown.requested_signal():
                raise Preempted

    def statuses(self) -> dict[str, RunStatus]:
        """Return the current status of each run by name."""
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

    def _start(self, job: Job, descriptor: int, environment: Mapping[str, str]) -> _ActiveJob:
        """Start the process of a job; it stops when this process ends.

        Args:
            job: Job to start.
            descriptor: Descriptor of the pipe through which the new process detects the end of this
                process, from `shutdown.parent_pipe`.
            environment: Environment variables from which the new process reads the descriptor.
        """
        for name in job.names:
            self._on_start(name)
        logs = contextlib.ExitStack()
        # Jointly trained runs print into the log of the first one.
        log: IO[Any] = logs.enter_context(
            directory.log_path(self._workdir, job.names[0]).open('ab')
        )
        gpu = self._free_gpus.pop(0) if self._free_gpus else ''
        # Unbuffered, so that stdout and stderr are in order in the log: the last line of a failed
        # run is its error.
        own = {'PYTHONUNBUFFERED': '1'} | ({'CUDA_VISIBLE_DEVICES': gpu} if gpu else {})
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **own},
            pass_fds=[descriptor],
            # In a process group of its own, so that a terminal's Ctrl-C reaches only this process,
            # which then asks the others to save.
            process_group=0,
        )
        for name in job.names:
            self.states[name] = 'running'
            self._attempts[name] += 1
        return _ActiveJob(job, process, logs, gpu)

    def _record_end(self, ended: _ActiveJob) -> list[Job]:
        """Record the outcome of an ended process, and return jobs that retry its failed runs."""
        ended.logs.close()
        if ended.gpu:
            self._free_gpus.append(ended.gpu)
        retries = []
        for name in ended.job.names:
            if directory.is_finished(self._workdir, name):
                self.states[name] = 'finished'
                self._on_finished(name)
            elif ended.process.returncode == 0:
                self.states[name] = 'stopped'
            elif self._attempts[name] < _MAX_ATTEMPTS:
                self.states[name] = 'waiting'
                retries.append(Job((name,), self._single_run_command(name)))
            else:
                self.states[name] = 'failed'
                self.errors[name] = self._error(name, ended.process.returncode)
        return retries

    def _error(self, name: str, returncode: int) -> str:
        if returncode < 0:
            return f'killed by {signal.Signals(-returncode).name}'
        return status.last_log_line(self._workdir, name)

    def _stop(self, active: list[_ActiveJob]) -> list[str]:
        """Ask processes to save and end, and kill those that need more than `_GRACE_SECONDS`.

        Returns:
            Names of the runs whose process was killed.
        """
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
