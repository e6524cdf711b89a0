"""Reading a checkpoint, and comparing its content with the checksums of its manifest."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from malora_jax import errors
from malora_jax.data import RowStreams
from malora_jax.training.identity import RunIdentity
from malora_jax.training.manifest import CheckpointManifest, JSONItem
from malora_jax.training.state import TrainState

# Orbax item of a checkpoint that stores its manifest.
MANIFEST_ITEM = 'manifest'
# Orbax item of checkpoints in format 0, which have checksums of the arrays instead of a manifest.
_SUMS_ITEM = 'sums'


class DamagedCheckpointError(errors.UserError):
    """Error for a checkpoint that is unreadable, or whose content differs from what was saved."""


class CheckpointReader:
    """Reads the checkpoints of one run."""

    def __init__(
        self, checkpointer: ocp.training.Checkpointer, directory: Any, identity: RunIdentity | None
    ):
        """Store the arguments.

        Args:
            checkpointer: Orbax's view of the directory.
            directory: Absolute path of the checkpoints, on disk or in a bucket.
            identity: Identity of the run that a checkpoint must belong to; None for any run.
        """
        self._checkpointer = checkpointer
        self._directory = directory
        self._identity = identity

    def read(self, step: int, state: TrainState, data: RowStreams | None = None) -> TrainState:
        """Return the state of a checkpoint.

        Args:
            step: Step of the checkpoint.
            state: Fresh state of the same run, for shapes, dtypes and shardings.
            data: Fresh training batches of the same run, which are moved to the saved position;
                None to read the state alone.

        Raises:
            DamagedCheckpointError: The checkpoint is unreadable, or does not match its checksums.
            UserError: The checkpoint belongs to another run, or has an unknown format.
        """
        manifest = self.read_manifest(step)
        if self._identity and manifest and manifest.run:
            self._identity.check(manifest.run, self._name(step))
        items: dict[str, Any] = {'state': _shapes(state)}
        if data is not None:
            items['data'] = data
        restored = self._read_items(step, items)['state']
        different = manifest and manifest.first_difference(restored, data)
        if different:
            raise DamagedCheckpointError(
                f'{self._name(step)} is damaged: {different} does not match its checksum.'
            )
        return restored

    def read_manifest(self, step: int) -> CheckpointManifest | None:
        """Return the manifest of a checkpoint.

        The result is None for a checkpoint of an early version of this package, which stored
        neither manifests nor checksums.

        Raises:
            DamagedCheckpointError: The manifest is unreadable.
            UserError: The checkpoint has an unknown format.
        """
        folder = self._directory / str(step)
        if not (folder / MANIFEST_ITEM).exists():
            if not (folder / _SUMS_ITEM).exists():
                return None
            sums = self._read_items(step, {_SUMS_ITEM: None})[_SUMS_ITEM]
            return CheckpointManifest(0, None, sums['state'], sums['data'])
        item = JSONItem()
        self._read_items(step, {MANIFEST_ITEM: item})
        try:
            return CheckpointManifest.from_json(item.value, self._name(step))
        except (KeyError, TypeError) as error:
            raise DamagedCheckpointError(
                f'{self._name(step)} is damaged: its manifest is invalid.'
            ) from error

    def _read_items(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        try:
            with _suppress_loop_errors():
                return self._checkpointer.load_checkpointables(step, items)
        except Exception as error:  # Orbax and file systems raise errors of many types.
            raise DamagedCheckpointError(f'{self._name(step)} cannot be read.') from error

    def _name(self, step: int) -> str:
        return f'Checkpoint {self._directory / str(step)}'


@contextlib.contextmanager
def _suppress_loop_errors() -> Iterator[None]:
    """Suppress the tracebacks of Orbax's threads if loading a checkpoint fails.

    Orbax closes its event loop at the first unreadable array. The threads that read the other
    arrays then fail as well, because the loop is closed. Without this block, their tracebacks would
    be printed, too.
    """
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = report
    yield
    # Not restored after an error, because the threads are still running then.
    sys.unraisablehook = hook


def _shapes(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
