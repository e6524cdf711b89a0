"""Deadline of a request, whose work is cancelled if the client disconnects or time runs out."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import fastapi

from malora_jax.serving.errors import ApiError

_Result = TypeVar('_Result')


class Deadline:
    """The deadline of a request.

    Attributes:
        at: Time at which the request is cancelled, in seconds of the event loop's clock.
        error: Error that the client then receives.
    """

    def __init__(self, timeout_s: float):
        self.at = asyncio.get_running_loop().time() + timeout_s
        self.error = ApiError(504, f'The answer took more than {timeout_s:g} seconds.')

    async def run_or_cancel(
        self, work: Coroutine[Any, Any, _Result], http: fastapi.Request
    ) -> _Result:
        """Return the result of a coroutine; cancel it if the client disconnects or time runs out.

        Args:
            work: Coroutine that computes the result.
            http: HTTP request whose connection is watched.

        Raises:
            ApiError: The coroutine was cancelled.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(http))
        both: set[asyncio.Future[Any]] = {task, gone}
        try:
            async with asyncio.timeout_at(self.at):
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise self.error from None
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if task in done:
            return task.result()
        raise ApiError(499, 'The client has disconnected.')


async def _wait_for_disconnect(http: fastapi.Request) -> None:
    while (await http.receive())['type'] != 'http.disconnect':
        pass
