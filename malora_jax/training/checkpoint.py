"""Checkpoints of a run: adapter, optimizer state, step and data position, not the base model."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
from orbax.checkpoint import v1 as ocp

from malora_jax import errors, files
from malora_jax.data import RowStreams
from malora_jax.distributed import hosts
from malora_jax.training.checkpoint_reader import (
    MANIFEST_ITEM,
    CheckpointReader,
    DamagedCheckpointError,
)
from malora_jax.training.identity import RunIdentity
from malora_jax.training.manifest import CheckpointManifest, JSONItem
from malora_jax.training.state import TrainState

# Disk space for metadata, in addition to the uncompressed size of the arrays.
_METADATA_BYTES = 1 << 20


class BestCheckpoint(NamedTuple):
    """The checkpoint with the lowest validation loss.

    Attributes:
        step: Step of the checkpoint.
        loss: Validation loss, in nats per token, averaged over tasks.
    """

    step: int
    loss: float


class LatestCheckpoint(NamedTuple):
    """The newest checkpoint of a run.

    Attributes:
        step: Step of the checkpoint.
        identity: Identity of its run; None if the checkpoint has none or is unreadable.
    """

    step: int
    identity: RunIdentity | None


class _PendingSave(NamedTuple):
    """A checkpoint that is being written asynchronously.

    Attributes:
        step: Step of the checkpoint.
        response: Orbax's future, whose `result` waits until the checkpoint is written.
    """

    step: int
    response: Any


class Checkpoints:
    """Checkpoints of one run, as a context manager.

        with Checkpoints(workdir / 'checkpoints', keep=2) as checkpoints:
            checkpoints.save(state, data)

    Orbax writes a checkpoint to a temporary directory and renames it at the end. If the process is
    killed while it writes, the incomplete checkpoint is therefore ignored. When there are more than
    `keep` checkpoints, the oldest are removed, except the one with the lowest validation loss.
    """

    def __init__(
        self, directory: pathlib.Path, keep: int | None = None, identity: RunIdentity | None = None
    ):
        """Open the checkpoints of a run.

        Args:
            directory: Directory of the checkpoints.
            keep: Number of newest checkpoints to keep; None opens the directory read-only, which is
                safe while the run is still training.
            identity: Identity of the run. It is saved with each checkpoint, and restoring a
                checkpoint of another run is an error. None restores checkpoints of any run.

        Raises:
            UserError: The directory does not exist (read-only), or checkpoints are unreadable.
        """
        if keep is None and not directory.is_dir():
            raise _no_checkpoint_error(directory)
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(keep)
        best = policies.BestN(
            get_metric_fn=_negative_loss, n=1, keep_checkpoints_without_metrics=False
        )
        preservation = (
            policies.AnyPreservationPolicy([newest, best]) if keep else policies.PreserveAll()
        )
        # A directory in a bucket (see `cloud_storage.remote_path`) is an absolute etils path, not
        # a `pathlib.Path`.
        self._is_on_disk = isinstance(directory, pathlib.Path)
        self._directory = directory.absolute() if self._is_on_disk else directory
        threads = {*threading.enumerate()}
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                # The training loop decides when to save, so Orbax must accept every step.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=preservation,
                cleanup_tmp_directories=keep is not None,
            )
        except Exception as error:  # Orbax reads the metadata of all checkpoints here.
            _check_metadata(self._directory)
            raise errors.UserError(
                f'Checkpoints in {directory} cannot be read ({error}).'
            ) from error
        self._identity = identity
        self._reader = CheckpointReader(self._checkpointer, self._directory, identity)
        self._pending_save: _PendingSave | None = None
        # Orbax removes temporary directories in a thread that starts further threads, and `close`
        # does not wait for them. A run that exits right away with an error message would then also
        # print the traceback of a thread. In a bucket, the threads of the client never end; there
        # the first save waits for the removal.
        while self._is_on_disk and (started := {*threading.enumerate()} - threads):
            for thread in started:
                if thread.is_alive():  # A thread that is still starting cannot be joined.
                    thread.join()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:  # Otherwise another exception is already being raised.
                raise
        finally:
            # `close` raises the error of a failed write a second time.
            with contextlib.suppress(Exception):
                self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending."""
        return sorted(each.step for each in self._checkpointer.checkpoints)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None without checkpoints."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best(self) -> BestCheckpoint | None:
        """The existing checkpoint with the lowest validation loss; None if no loss was measured."""
        measured = [each for each in self._checkpointer.checkpoints if each.metrics]
        if not measured:
            return None
        # Among equal losses the newest wins, as in Orbax's preservation policy.
        best = sorted(measured, key=lambda each: _negative_loss(each.metrics))[-1]
        return BestCheckpoint(best.step, best.metrics['validation_loss'])

    @property
    def best_or_latest_step(self) -> int | None:
        """Step of `best`, or of the newest checkpoint if no validation loss was measured.

        None if there are no checkpoints.
        """
        return self.best.step if self.best else self.latest_step

    def check_exists(self) -> None:
        """Check that the directory has a checkpoint.

        Raises:
            UserError: The directory has no checkpoint.
        """
        if self.latest_step is None:
            raise _no_checkpoint_error(self._directory)

    def save(
        self, state: TrainState, data: RowStreams, validation_loss: float | None = None
    ) -> None:
        """Start to save a checkpoint asynchronously.

        The method returns when the state is copied, so that its buffers may be donated to the next
        step. `wait` returns when the checkpoint is on disk. Nothing is saved if the newest
        checkpoint already has the step of the state.

        Args:
            state: State to save.
            data: Training batches, whose position is saved.
            validation_loss: Validation loss of the state, if it was measured.

        Raises:
            OSError: This checkpoint or the previous one cannot be written, or the disk is full.
                Earlier checkpoints are not affected.
        """
        self.wait()
        step = int(state.step)
        if step == self.latest_step:
            return
        self.check_disk_space(state)
        manifest = JSONItem(
            dataclasses.asdict(CheckpointManifest.from_state(state, data, self._identity))
        )
        metrics = None if validation_loss is None else {'validation_loss': validation_loss}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {'state': state, 'data': data, MANIFEST_ITEM: manifest}, metrics=metrics
            )
        except Exception as error:  # Storage backends raise errors of many types.
            self._raise_save_error(step, error)
        self._pending_save = _PendingSave(step, response)

    def wait(self) -> None:
        """Wait until the last saved checkpoint is on disk.

        Raises:
            OSError: The checkpoint cannot be written. Earlier checkpoints are not affected.
        """
        writing, self._pending_save = self._pending_save, None
        if writing is not None:
            try:
                writing.response.result()
            except Exception as error:
                self._raise_save_error(writing.step, error)

    def _raise_save_error(self, step: int, error: Exception) -> NoReturn:
        cause = str(error).rsplit(': ', 1)[-1] or type(error).__name__
        raise OSError(
            f'Checkpoint {self._directory / str(step)} cannot be written ({cause}); the same '
            'command resumes from the previous checkpoint.'
        ) from error

    def check_disk_space(self, state: TrainState) -> None:
        """Check that a checkpoint of the state fits on the disk.

        Nothing is checked if the checkpoints are written to a cloud storage bucket. Without this
        check, a full disk would also raise an error, but with tracebacks of Orbax's threads.

        Args:
            state: State to save.

        Raises:
            OSError: The disk has too little free space.
        """
        if not self._is_on_disk:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _METADATA_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                f'A checkpoint needs {needed / 1e6:.1f} MB, but {self._directory} has only '
                f'{free / 1e6:.1f} MB free: make room; the same command resumes from the last '
                'checkpoint.'
            )

    def restore(self, state: TrainState, data: RowStreams) -> TrainState:
        """Restore the newest intact checkpoint.

        Newer checkpoints that are damaged are quarantined: each is renamed to `broken-STEP`. If no
        checkpoint can be read, none is renamed, because the cause is then probably not in the
        checkpoints.

        Args:
            state: Fresh state of the same run, for shapes, dtypes and shardings.
            data: Fresh training batches of the same run. They are moved to the saved position.

        Returns:
            The restored state.

        Raises:
            UserError: There is no checkpoint, none is readable, or one belongs to another run.
        """
        self.wait()
        steps = self.steps[::-1]
        broken: dict[int, DamagedCheckpointError] = {}
        for step in steps:
            try:
                restored = self._reader.read(step, state, data)
            except DamagedCheckpointError as error:
                broken[step] = error
                continue
            self._quarantine(broken)
            return restored
        raise broken[steps[0]] if steps else _no_checkpoint_error(self._directory)

    def _quarantine(self, broken: Mapping[int, DamagedCheckpointError]) -> None:
        for step, error in broken.items():
            again = (f'broken-{step}-{number}' for number in itertools.count(2))
            names = itertools.chain([f'broken-{step}'], again)
            aside = next(name for name in names if not (self._directory / name).exists())
            hosts.barrier(f'put aside {step}')
            if hosts.is_first_process():
                (self._directory / str(step)).rename(self._directory / aside)
            hosts.print_on_first(
                f'{error} It was renamed to {aside}; the run resumes from an older checkpoint.'
            )
        if broken:
            hosts.barrier('put aside')
            self._checkpointer.reload()

    def best_state(self, state: TrainState) -> TrainState:
        """Return the state with the lowest validation loss.

        Args:
            state: State after the last step. It is returned if it is the best one, or if no
                validation loss was measured.

        Raises:
            UserError: The best checkpoint is unreadable, or belongs to another run.
        """
        best = self.best
        if best is None or best.step == int(state.step):
            return state
        return self.restore_state(state, best.step)

    def restore_state(self, state: TrainState, step: int | None = None) -> TrainState:
        """Restore the state of a checkpoint, without the data position.

        Args:
            state: Fresh state of the same run, for shapes, dtypes and shardings.
            step: Step of the checkpoint; None for the newest.

        Returns:
            The restored state.

        Raises:
            UserError: There is no checkpoint, it is unreadable, or it belongs to another run.
        """
        self.wait()
        step = step or self.latest_step
        if step is None:
            raise _no_checkpoint_error(self._directory)
        try:
            return self._reader.read(step, state)
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(
                f'{error} To use another checkpoint, move that directory elsewhere.'
            ) from error

    def read_identity(self, step: int) -> RunIdentity | None:
        """Return the identity of the run that a checkpoint belongs to; None if it has none.

        Args:
            step: Step of the checkpoint.

        Raises:
            UserError: The manifest is unreadable, or has an unknown format.
        """
        manifest = self._reader.read_manifest(step)
        return manifest.run if manifest else None


def latest_checkpoint(directory: pathlib.Path) -> LatestCheckpoint | None:
    """Return the newest checkpoint in a directory; None if there is none.

    The manifest of a checkpoint stores the identity of its run. Checkpoints with a damaged manifest
    are skipped. If all manifests are damaged, the newest checkpoint is returned, with None as its
    identity.

    Args:
        directory: Directory of the checkpoints; it need not exist.

    Raises:
        UserError: A manifest has a newer format than this version of the package reads, or Orbax
            cannot list the checkpoints because its own metadata files are damaged.
    """
    if not directory.is_dir():
        return None
    with Checkpoints(directory) as checkpoints:
        for step in checkpoints.steps[::-1]:
            with contextlib.suppress(DamagedCheckpointError):
                return LatestCheckpoint(step, checkpoints.read_identity(step))
        latest = checkpoints.latest_step
        return None if latest is None else LatestCheckpoint(latest, None)


def _check_metadata(directory: pathlib.Path) -> None:
    """Check the metadata files, without which Orbax cannot list the checkpoints.

    Raises:
        UserError: A metadata file is invalid.
    """
    for path in sorted(directory.glob('[0-9]*/_CHECKPOINT_METADATA')):
        remedy = f'move {path.parent} elsewhere to continue from the checkpoint before it'
        files.read_json(path, dict, remedy)


def _negative_loss(metrics: dict[str, float]) -> float:
    return -metrics['validation_loss']


def _no_checkpoint_error(directory: Any) -> errors.UserError:
    return errors.UserError(f'There is no checkpoint in {directory}: resume the training.')
