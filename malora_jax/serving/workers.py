"""Threads for work on texts that would hold up the event loop."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar('_Result')

# Characters (or bytes) of a text whose work takes some 30 ms.
_SHORT = 20_000


class Workers:
    """Two lanes: no short text waits for a long one.

    The long one has one thread, so that long texts take at most one core.
    """

    def __init__(self):
        self._short = concurrent.futures.ThreadPoolExecutor(2, 'short-texts')
        self._long = concurrent.futures.ThreadPoolExecutor(1, 'long-texts')

    async def run(self, size: int, work: Callable[[], _Result]) -> _Result:
        """Return the result of the work, which waits for its turn.

        Args:
            size: Characters or bytes to work on.
            work: Called in a thread, unless the caller is cancelled before its turn.
        """
        lane = self._short if size <= _SHORT else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def close(self) -> None:
        """Forget all work that has not begun."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)
