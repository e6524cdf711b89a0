"""SIGTERM, as clouds and batch systems send it some time before they take a machine away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """The run was asked to stop, and has saved what it had: exit status 0."""

    def __init__(self):
        super().__init__(0)


class Preemption:
    """Whether the run was asked to stop."""

    def __init__(self):
        self._asked = self._is_deferred = False

    def reached(self, step: int) -> bool:
        """Whether to stop after a step; on several hosts they all stop after the same one.

        There JAX's own preemption service listens, which has to be asked at every step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal waits until `reached` is asked; elsewhere it stops the run at once."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self._asked:
            self._stop()

    def _signalled(self, *_: Any) -> None:
        self._asked = True
        if not self._is_deferred:
            self._stop()

    def _stop(self) -> None:
        # Not by print, which the signal may have come into.
        os.write(1, b'Stopped by SIGTERM; the same command goes on from what it saved.\n')
        raise Preempted


@contextlib.contextmanager
def watched() -> Iterator[Preemption]:
    """Listens for SIGTERM, as only the main thread of a process can; others hear nothing."""
    preemption = Preemption()
    is_ours = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
    before = signal.signal(signal.SIGTERM, preemption._signalled) if is_ours else None
    try:
        yield preemption
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, before)
