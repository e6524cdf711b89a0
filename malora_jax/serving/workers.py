"""Worker threads for text processing that would block the event loop."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar('_Result')

# Maximum size of a short text in characters or bytes; its processing takes about 30 ms.
_MAX_SHORT_SIZE = 20_000


class Workers:
    """Two thread pools, so that work on short texts never waits for work on long texts.

    The pool for long texts has one thread, so that long texts use at most one core.
    """

    def __init__(self):
        self._short = concurrent.futures.ThreadPoolExecutor(2, 'short-texts')
        self._long = concurrent.futures.ThreadPoolExecutor(1, 'long-texts')

    async def run(self, size: int, work: Callable[[], _Result]) -> _Result:
        """Run a function in a worker thread, and return its result.

        Args:
            size: Size of the text in characters or bytes, which selects the pool.
            work: Function to call; it is not called if the caller is cancelled before its turn.
        """
        lane = self._short if size <= _MAX_SHORT_SIZE else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def close(self) -> None:
        """Cancel all work that has not started."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)
