"""The manifest of a checkpoint: its format, the identity of its run, and SHA-256 digests.

Every array and every position of the data streams has a digest, because a damaged file may still
have the right size.
"""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from malora_jax.data import RowStreams
from malora_jax.distributed import hosts
from malora_jax.errors import UserError
from malora_jax.training.identity import RunIdentity
from malora_jax.training.state import TrainState

# Version of the checkpoint format. Checkpoints of format 0 have no identity. Instead of digests,
# they have the sum of each array's 32-bit words, modulo 2³².
FORMAT = 1
_FILE = 'data.json'


@dataclasses.dataclass(frozen=True)
class CheckpointManifest:
    """Metadata that is stored next to the arrays of a checkpoint.

    Attributes:
        format: Version of the checkpoint format.
        run: Identity of the checkpoint's run; None if it is unknown.
        arrays: Digest of each leaf of the state, by path.
        data: Digest of the position of each data stream, by stream number.
    """

    format: int
    run: RunIdentity | None
    arrays: Mapping[str, str | int]
    data: Mapping[str, str]

    @classmethod
    def from_state(
        cls, state: TrainState, data: RowStreams, run: RunIdentity | None
    ) -> 'CheckpointManifest':
        """Return the manifest of a checkpoint that is about to be saved.

        Args:
            state: State that is saved.
            data: Iterator over training batches, at the position that is saved.
            run: Identity of the run; None if it is unknown.
        """
        return cls(FORMAT, run, _digests(state, FORMAT), _position_digests(data))

    @classmethod
    def from_json(cls, stored: Any, name: str) -> 'CheckpointManifest':
        """Return the manifest that a JSON value represents.

        Args:
            stored: JSON value of `dataclasses.asdict` of a manifest.
            name: Name of the checkpoint, for error messages.

        Raises:
            UserError: The manifest has a newer format than this version of the package reads.
            KeyError, TypeError: The value is not a manifest.
        """
        if stored['format'] > FORMAT:
            raise UserError(
                f'{name} has format {stored["format"]}, and this version of malora_jax reads '
                f'formats up to {FORMAT}: update malora_jax.'
            )
        run = None if stored['run'] is None else RunIdentity(**stored['run'])
        return cls(stored['format'], run, dict(stored['arrays']), dict(stored['data']))

    def first_difference(self, state: TrainState, data: RowStreams | None) -> str | None:
        """Return the name of the first array or data position that differs from the saved one.

        Args:
            state: State that was loaded.
            data: Iterator over training batches, at the position that was loaded; None if no
                position was loaded.

        Returns:
            Path of the array, or 'the position in the data'; None if nothing differs.
        """
        digests = _digests(state, self.format)
        for path in sorted({*digests, *self.arrays}):
            if digests.get(path) != self.arrays.get(path):
                return path
        # The first process writes the manifest, so only the streams that it reads have a digest.
        for number, position in ({} if data is None else _position_digests(data)).items():
            if self.data.get(number, position) != position:
                return 'the position in the data'
        return None


class JSONItem:
    """A JSON value as an Orbax checkpointable, stored in a file `data.json`.

    Attributes:
        value: The value to save, or the value that was loaded.
    """

    def __init__(self, value: Any = None):
        self.value = value

    async def save(self, directory: Any) -> Awaitable[None]:
        """Write the value; only the first process writes.

        Args:
            directory: Orbax's asynchronous path of the item's directory.

        Returns:
            An awaitable that writes the file in the background.
        """
        text = json.dumps(self.value)

        async def write() -> None:
            folder = await directory.await_creation()
            if hosts.is_first_process():
                await asyncio.to_thread((folder / _FILE).write_text, text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Read the value into `value`.

        Args:
            directory: Path of the item's directory.

        Returns:
            An awaitable that reads the file in the background.
        """

        async def read() -> None:
            self.value = json.loads(await asyncio.to_thread((directory / _FILE).read_text))

        return read()


def _digests(state: TrainState, version: int) -> dict[str, str | int]:
    return {path: _sha256(array) if version else _sum(array) for path, array in _arrays(state)}


def _arrays(state: TrainState) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path of each leaf and its whole value, gathered on every process."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        yield jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(leaf, order='C')


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _sum(array: np.ndarray) -> int:
    return int(array.view(np.uint32).sum(dtype=np.uint32))


def _position_digests(data: RowStreams) -> dict[str, str]:
    return {
        number: hashlib.sha256(json.dumps(state).encode()).hexdigest()
        for number, state in data.get_state().items()
    }
