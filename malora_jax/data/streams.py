"""Training batches from several independent streams of rows, for data parallelism over processes.

Each process reads only the streams it needs. The rows of a batch depend on the number of streams
only, not on which process reads them. So no example is lost or repeated for any number of
processes, and the number may change when a run resumes.
"""

import asyncio
import json
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any

import grain
import numpy as np


class RowStreams(Iterator[dict[str, np.ndarray]]):
    """Iterator over batches whose rows come from S independent streams.

    The rows of a batch are S equal blocks, and the i-th stream fills the i-th block. This process
    reads only the streams whose rows its own devices need. The blocks of all other streams are
    zeros (padding). Orbax saves and restores the position of each stream, in one file per stream.

    For example, from `train_iterator`::

        batches = train_iterator(..., streams=4)
        batch = next(batches)
        state = batches.get_state()
    """

    def __init__(
        self,
        streams: Mapping[int, grain.DatasetIterator],
        count: int,
        saved_streams: set[int] | None = None,
    ):
        """Combine streams into one iterator.

        Args:
            streams: Streams that this process reads, by index; at least one.
            count: S, the number of streams of all processes together.
            saved_streams: Indices of the streams whose position this process saves; None = all that
                it reads.
        """
        self._streams, self._count = dict(streams), count
        self._saved = set(streams) if saved_streams is None else saved_streams

    def __next__(self) -> dict[str, np.ndarray]:
        parts = {number: next(stream) for number, stream in self._streams.items()}
        first = next(iter(parts.values()))
        if self._count == 1:
            return first
        padding = {name: np.zeros_like(rows) for name, rows in first.items()}
        blocks = [parts.get(number, padding) for number in range(self._count)]
        return {name: np.concatenate([part[name] for part in blocks]) for name in first}

    def close(self) -> None:
        """Stop the prefetching threads."""
        for stream in self._streams.values():
            stream.close()

    def get_state(self) -> dict[str, Any]:
        """Return the positions of the streams that this process reads, as JSON values."""
        return {str(number): stream.get_state() for number, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the stream positions that `get_state` returned."""
        for number, stream in self._streams.items():
            stream.set_state(state[str(number)])

    async def save(self, directory: Any) -> Awaitable[None]:
        """Save the positions of the saved streams; Orbax calls this when it writes a checkpoint."""
        states = {number: json.dumps(self._streams[number].get_state()) for number in self._saved}

        async def write() -> None:
            folder = await directory.await_creation()
            for number, state in states.items():
                await asyncio.to_thread((folder / self._file(number)).write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Restore the positions of the streams; Orbax calls this when it reads a checkpoint."""

        async def read() -> None:
            for number, stream in self._streams.items():
                path = directory / self._file(number)
                # Older checkpoints, from before there were streams, have Grain's own file name.
                older = directory / 'process_0-of-1.json'
                if self._count == 1 and not path.exists() and older.exists():
                    path = older
                stream.set_state(json.loads(await asyncio.to_thread(path.read_text)))

        return read()

    def _file(self, number: int) -> str:
        return f'stream_{number}-of-{self._count}.json'
