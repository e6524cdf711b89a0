"""Checkpoints of adapter, optimizer, step and data position; never of the base."""

import contextlib
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
from orbax.checkpoint import v1 as ocp

from malora_jax import errors
from malora_jax.training.state import TrainState

# Room for what is beside the arrays; they are compressed a little.
_METADATA_BYTES = 1 << 20


class Best(NamedTuple):
    """The checkpoint with the lowest validation loss, and that loss."""

    step: int
    loss: float


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Orbax writes to a temporary folder and renames it, so one that a kill interrupted does not
    count; the oldest are removed once there are more than `keep`, the best one excepted.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None = None):
        """Opens the checkpoints of a run.

        Args:
            directory: where they are.
            keep: how many of the newest stay; None to read only, which changes nothing, not even
                what a trainer that is still running is about to save.

        Raises:
            UserError: there is no such directory to read.
        """
        if keep is None and not directory.is_dir():
            raise errors.UserError(f'There are no checkpoints: {directory} does not exist.')
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_goodness, n=1, keep_checkpoints_without_metrics=False)
        kept = policies.AnyPreservationPolicy([newest, best]) if keep else policies.PreserveAll()
        self._directory = directory.absolute()
        threads = {*threading.enumerate()}
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            # The loop decides when to save.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=kept,
            cleanup_tmp_directories=keep is not None,
        )
        # Orbax removes them in a thread that close() does not wait for, and that starts others: a
        # run that ends at once with a message would end with a thread's traceback too.
        while started := {*threading.enumerate()} - threads:
            for thread in started:
                if thread.is_alive():  # One that is just starting cannot be waited for yet.
                    thread.join()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best(self) -> Best | None:
        """The best of the checkpoints there are, or None if none has a validation loss."""
        measured = [each for each in self._checkpointer.checkpoints if each.metrics]
        if not measured:
            return None
        # The last of equals, as Orbax has it.
        best = sorted(measured, key=lambda each: _goodness(each.metrics))[-1]
        return Best(best.step, best.metrics['validation_loss'])

    @property
    def chosen_step(self) -> int | None:
        """The step whose state stands for the run: the best, or the newest if none was measured."""
        return self.best.step if self.best else self.latest_step

    def save(
        self, state: TrainState, data: grain.DatasetIterator, validation_loss: float | None = None
    ) -> None:
        """Saves; returns when everything is on disk.

        Args:
            state: what is saved.
            data: its position is saved with it.
            validation_loss: of the state, if it was measured.

        Raises:
            OSError: it cannot be written; the checkpoints before it are as they were.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        self.check_room(state)
        metrics = None if validation_loss is None else {'validation_loss': validation_loss}
        try:
            self._checkpointer.save_checkpointables(
                step, {'state': state, 'data': data}, metrics=metrics
            )
        except Exception as error:  # The storage's errors are of many types.
            cause = str(error).rsplit(': ', 1)[-1] or type(error).__name__
            raise OSError(
                f'Checkpoint {self._directory / str(step)} cannot be written ({cause}); the same '
                'command goes on from the one before.'
            ) from error

    def check_room(self, state: TrainState) -> None:
        """Checks that a checkpoint of the state fits on the disk.

        Where it does not, the storage would say so too, but with the tracebacks of its threads.

        Raises:
            OSError: it does not, in megabytes.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _METADATA_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                f'A checkpoint needs {needed / 1e6:.1f} MB and {self._directory} has '
                f'{free / 1e6:.1f} MB free: make room; the same command goes on from the last one.'
            )

    def restore(self, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The newest checkpoint's state; `data` is moved to where it was.

        Args:
            state: a fresh state of the same run, for its shapes.
            data: a fresh iterator of the same run.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        return self._load(self.latest_step, {'state': _shapes(state), 'data': data})['state']

    def restore_state(self, state: TrainState, step: int | None = None) -> TrainState:
        """The state alone, of the newest checkpoint or another.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        return self._load(step or self.latest_step, {'state': _shapes(state)})['state']

    def _load(self, step: int | None, wanted: dict[str, Any]) -> dict[str, Any]:
        if step is None:
            raise errors.UserError(f'There is no checkpoint in {self._directory}.')
        try:
            with _quiet_if_it_fails():
                return self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # Whatever Orbax or the file system finds wrong.
            folder = self._directory / str(step)
            raise errors.UserError(
                f'Checkpoint {folder} cannot be read: remove that folder to continue from the one '
                'before.'
            ) from error


@contextlib.contextmanager
def _quiet_if_it_fails() -> Iterator[None]:
    """Keeps the threads of a load that fails from printing tracebacks beside its error.

    Orbax closes its event loop at the first array that cannot be read, and the reads of the others
    then find it closed.
    """
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = report
    yield
    sys.unraisablehook = hook  # After an error it stays: their threads still run.


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics['validation_loss']


def _shapes(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
