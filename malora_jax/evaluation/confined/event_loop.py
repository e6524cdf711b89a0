"""An asyncio event loop that needs no socket and no extra system call.

asyncio's own event loops create a socket pair, through which threads and signals wake them. A
confined process has neither threads nor connections, so nothing but a timer can end a wait, and
this loop simply sleeps.

asyncio is imported only on demand, because its import takes longer than most programs run.
"""

import functools
import time
from collections.abc import Coroutine
from typing import Any

# Time in seconds that is longer than any confined process may run.
_FOREVER = 1e6


@functools.cache
def install() -> None:
    """Make asyncio create event loops that need no socket."""
    import asyncio

    class EventLoop(asyncio.BaseEventLoop):
        """An event loop that waits only for timers."""

        def __init__(self) -> None:
            super().__init__()
            self._selector = self

        def select(self, timeout: float | None) -> list[Any]:
            """Sleep until the next timer is due, and return no event."""
            time.sleep(_FOREVER if timeout is None else timeout)
            return []

        def _process_events(self, event_list: list[Any]) -> None:
            """Do nothing, because there are no events."""

        def _write_to_self(self) -> None:
            """Do nothing, because no other thread needs to wake the loop."""

    class Policy(asyncio.DefaultEventLoopPolicy):
        """The default event loop policy, but with `EventLoop`."""

        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            """Return a new event loop."""
            return EventLoop()

    asyncio.set_event_loop_policy(Policy())


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end and return its result."""
    install()
    import asyncio

    return asyncio.run(coroutine)
