"""An event loop for asyncio that needs no socket and no further system call.

The loops of asyncio make a socket pair, by which threads and signals wake them. A confined process
has neither threads nor connections, so nothing can happen while a loop waits: it just sleeps.

asyncio is imported only on demand, since its import takes longer than most programs.
"""

import functools
import time
from collections.abc import Coroutine
from typing import Any

# Seconds; longer than any confined process may run.
_FOREVER = 1e6


@functools.cache
def install() -> None:
    """Make asyncio create this kind of event loop."""
    import asyncio

    class EventLoop(asyncio.BaseEventLoop):
        """An event loop that waits for nothing but timers."""

        def __init__(self) -> None:
            super().__init__()
            self._selector = self

        def select(self, timeout: float | None) -> list[Any]:
            """Sleep until the next timer is due, and return no event."""
            time.sleep(_FOREVER if timeout is None else timeout)
            return []

        def _process_events(self, event_list: list[Any]) -> None:
            """Do nothing, as there are no events."""

        def _write_to_self(self) -> None:
            """Do nothing, as no other thread calls this."""

    class Policy(asyncio.DefaultEventLoopPolicy):
        """The default policy with this event loop."""

        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            """Return a new event loop."""
            return EventLoop()

    asyncio.set_event_loop_policy(Policy())


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine."""
    install()
    import asyncio

    return asyncio.run(coroutine)
