"""Rows from several independent streams, of which a process reads those that it needs.

Which rows a batch has depends on the number of streams alone, not on who reads them: no example is
lost or repeated whatever the number of processes, which may change when a run goes on.
"""

import asyncio
import json
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any

import grain
import numpy as np


class RowStreams(Iterator[dict[str, np.ndarray]]):
    """Batches; of S streams the i-th fills the i-th S-th of each batch's rows.

    Rows of streams that are not read here are zeros: padding, which no device here looks at. Orbax
    saves and loads the position of each stream, in a file of its own.
    """

    def __init__(
        self,
        streams: Mapping[int, grain.DatasetIterator],
        count: int,
        saved: set[int] | None = None,
    ):
        """Puts streams together.

        Args:
            streams: by number, those that are read here; not empty.
            count: S.
            saved: those whose position this process saves; all that it reads by default.
        """
        self._streams, self._count = dict(streams), count
        self._saved = set(streams) if saved is None else saved

    def __next__(self) -> dict[str, np.ndarray]:
        parts = {number: next(stream) for number, stream in self._streams.items()}
        some = next(iter(parts.values()))
        if self._count == 1:
            return some
        nothing = {name: np.zeros_like(rows) for name, rows in some.items()}
        each = [parts.get(number, nothing) for number in range(self._count)]
        return {name: np.concatenate([part[name] for part in each]) for name in some}

    def close(self) -> None:
        """Ends the threads that read ahead."""
        for stream in self._streams.values():
            stream.close()

    def get_state(self) -> dict[str, Any]:
        """Where the streams that are read here stand, as JSON can hold it."""
        return {str(number): stream.get_state() for number, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves the streams that are read here to where they stood."""
        for number, stream in self._streams.items():
            stream.set_state(state[str(number)])

    async def save(self, directory: Any) -> Awaitable[None]:
        """Writes positions, as Orbax has its checkpointables do."""
        states = {number: json.dumps(self._streams[number].get_state()) for number in self._saved}

        async def write() -> None:
            folder = await directory.await_creation()
            for number, state in states.items():
                await asyncio.to_thread((folder / self._file(number)).write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Reads positions."""

        async def read() -> None:
            for number, stream in self._streams.items():
                path = directory / self._file(number)
                # As Grain named it, in runs that are older than streams.
                older = directory / 'process_0-of-1.json'
                if self._count == 1 and not path.exists() and older.exists():
                    path = older
                stream.set_state(json.loads(await asyncio.to_thread(path.read_text)))

        return read()

    def _file(self, number: int) -> str:
        return f'stream_{number}-of-{self._count}.json'
