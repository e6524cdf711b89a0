"""Preemption: SIGTERM, as clouds and batch systems send it before they take a machine away."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from malora_jax import shutdown
from malora_jax.shutdown import Preempted

__all__ = ['Preempted', 'Preemption', 'watched']


class Preemption:
    """Whether a run is asked to stop."""

    def reached(self, step: int) -> bool:
        """Whether to stop after a step; on several hosts they all stop after the same one.

        There JAX's own preemption service listens, which has to be asked at every step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(shutdown.requested())

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it SIGTERM waits until `reached` is asked; elsewhere it stops the run at once.

        Raises:
            Preempted: SIGTERM came after `reached` was asked for the last time.
        """
        with shutdown.deferred(signal.SIGTERM):
            yield
        if shutdown.requested():
            raise Preempted


@contextlib.contextmanager
def watched() -> Iterator[Preemption]:
    """Handles SIGTERM, unless the processes of a run have JAX's preemption service."""
    with contextlib.nullcontext() if jax.process_count() > 1 else shutdown.watched():
        yield Preemption()
