"""The manifest of a checkpoint: its format, the identity of its run, and SHA-256 digests.

Digests are of every array and of every position in the data, as files may be of the right size and
yet damaged.
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
from malora_jax.training.identity import Identity
from malora_jax.training.state import TrainState

# Version of what a checkpoint holds. In format 0 checkpoints had no identity, and sums of their
# words modulo 2³² instead of digests.
FORMAT = 1
_FILE = 'data.json'


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is stored next to the arrays of a checkpoint.

    Attributes:
        format: Version of what the checkpoint holds.
        run: Identity of its run; None if it is not known.
        arrays: Digest of each leaf of the state, by path.
        data: Digest of each position in the data, by stream.
    """

    format: int
    run: Identity | None
    arrays: Mapping[str, str | int]
    data: Mapping[str, str]

    @classmethod
    def of(cls, state: TrainState, data: RowStreams, run: Identity | None) -> 'Manifest':
        """Return the manifest of a checkpoint that is about to be saved."""
        return cls(FORMAT, run, _digests(state, FORMAT), _positions(data))

    @classmethod
    def from_json(cls, stored: Any, name: str) -> 'Manifest':
        """Return a manifest that was stored as `dataclasses.asdict` made it.

        Args:
            stored: The JSON value.
            name: Name of the checkpoint, for the message.

        Raises:
            UserError: It has a format that this version of the code does not know.
            KeyError, TypeError: It is no manifest.
        """
        if stored['format'] > FORMAT:
            raise UserError(
                f'{name} has format {stored["format"]}, and this version of malora_jax reads '
                f'formats up to {FORMAT}: update malora_jax.'
            )
        run = None if stored['run'] is None else Identity(**stored['run'])
        return cls(stored['format'], run, dict(stored['arrays']), dict(stored['data']))

    def first_difference(self, state: TrainState, data: RowStreams | None) -> str | None:
        """Return the name of the first array or position that is not as it was saved, or None.

        Args:
            state: State that was read.
            data: Training batches at the position that was read; None if it was not read.
        """
        found = _digests(state, self.format)
        for path in sorted({*found, *self.arrays}):
            if found.get(path) != self.arrays.get(path):
                return path
        # Positions that the first process read are saved; other processes have none of these.
        for number, position in ({} if data is None else _positions(data)).items():
            if self.data.get(number, position) != position:
                return 'the position in the data'
        return None


class JSONItem:
    """A JSON value as an item of a checkpoint, in a file `data.json`.

    Attributes:
        value: The value to save, or the value that was loaded.
    """

    def __init__(self, value: Any = None):
        self.value = value

    async def save(self, directory: Any) -> Awaitable[None]:
        """Write the value, as Orbax has its checkpointables do; the first process writes."""
        text = json.dumps(self.value)

        async def write() -> None:
            folder = await directory.await_creation()
            if hosts.is_first():
                await asyncio.to_thread((folder / _FILE).write_text, text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Read the value."""

        async def read() -> None:
            self.value = json.loads(await asyncio.to_thread((directory / _FILE).read_text))

        return read()


def _digests(state: TrainState, version: int) -> dict[str, str | int]:
    return {path: _sha256(array) if version else _sum(array) for path, array in _arrays(state)}


def _arrays(state: TrainState) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path and the whole value of each leaf, on every process."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        yield jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(leaf, order='C')


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _sum(array: np.ndarray) -> int:
    return int(array.view(np.uint32).sum(dtype=np.uint32))


def _positions(data: RowStreams) -> dict[str, str]:
    return {
        number: hashlib.sha256(json.dumps(state).encode()).hexdigest()
        for number, state in data.get_state().items()
    }
