"""Checkpoints of adapter, optimizer, step and data position; never of the base."""

import pathlib
from typing import Any

import grain
import jax
from orbax.checkpoint import v1 as ocp

from malora_jax import errors
from malora_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Orbax writes to a temporary folder and renames it, so one that a kill interrupted does not
    count; the oldest are removed once there are more than `keep`.
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
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            # The loop decides when to save.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.LatestN(keep) if keep else policies.PreserveAll(),
            cleanup_tmp_directories=keep is not None,
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, data: grain.DatasetIterator) -> None:
        """Saves; returns when everything is on disk."""
        step = int(state.step)
        if step != self.latest_step:
            self._checkpointer.save_checkpointables(step, {'state': state, 'data': data})

    def restore(self, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The newest checkpoint's state; `data` is moved to where it was.

        Args:
            state: a fresh state of the same run, for its shapes.
            data: a fresh iterator of the same run.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        return self._load({'state': _shapes(state), 'data': data})['state']

    def restore_state(self, state: TrainState) -> TrainState:
        """The newest checkpoint's state alone.

        Raises:
            UserError: there is no checkpoint, or it cannot be read.
        """
        return self._load({'state': _shapes(state)})['state']

    def _load(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self.latest_step is None:
            raise errors.UserError(f'There is no checkpoint in {self._checkpointer.directory}.')
        try:
            return self._checkpointer.load_checkpointables(self.latest_step, wanted)
        except Exception as error:  # Whatever Orbax or the file system finds wrong.
            folder = pathlib.Path(str(self._checkpointer.directory)) / str(self.latest_step)
            raise errors.UserError(
                f'Checkpoint {folder} cannot be read: remove that folder to continue from the one '
                'before.'
            ) from error


def _shapes(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
