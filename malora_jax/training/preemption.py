"""Preemption: SIGTERM, which cloud providers and schedulers send before they reclaim a machine."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from malora_jax import shutdown
from malora_jax.shutdown import Preempted

__all__ = ['Preempted', 'PreemptionWatcher', 'watch_preemption']


class PreemptionWatcher:
    """Watcher that reports whether a run was asked to stop by SIGTERM.

    Example:
        with watch_preemption() as preemption, preemption.defer_sigterm():
            for step in range(1, steps + 1):
                state = train_step(state)
                if preemption.should_stop(step):
                    save(state)
                    raise Preempted
    """

    def should_stop(self, step: int) -> bool:
        """Return whether the run should stop after this step.

        On several hosts, JAX's preemption service makes all of them stop after the same step. For
        this to work, every host must call this method at every step.

        Args:
            step: Number of the step that was just started or finished.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(shutdown.requested_signal())

    @contextlib.contextmanager
    def defer_sigterm(self) -> Iterator[None]:
        """Delay the effect of SIGTERM inside the block until `should_stop` is called.

        Outside this block, SIGTERM stops the run at once.

        Raises:
            Preempted: SIGTERM came after the last call of `should_stop`.
        """
        with shutdown.defer_signals(signal.SIGTERM):
            yield
        if shutdown.requested_signal():
            raise Preempted


@contextlib.contextmanager
def watch_preemption() -> Iterator[PreemptionWatcher]:
    """Handle SIGTERM inside the block; on several hosts, JAX's preemption service handles it.

    Example:
        with watch_preemption() as preemption:
            state = train_steps(progress, state, preemption)

    Yields:
        The watcher that the training loop queries after every step.
    """
    with contextlib.nullcontext() if jax.process_count() > 1 else shutdown.raise_on_sigterm():
        yield PreemptionWatcher()
