"""The HTTP server: connections, signals and graceful shutdown."""

import asyncio
import gc
import json
import queue
import signal
import socket
import threading
import time

import fastapi
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from malora_jax.serving.errors import ApiError
from malora_jax.serving.scheduler import Scheduler

# Maximum time in seconds for the head of a request (request line and headers) to arrive, and
# maximum time for sending the last responses during shutdown.
_HEAD_TIMEOUT_S, _FLUSH_TIMEOUT_S = 30.0, 3.0


def serve(app: fastapi.FastAPI, listener: socket.socket, grace_s: float) -> None:
    """Serve HTTP requests until SIGINT or SIGTERM; must be called from the main thread.

    After the first signal, new requests get status 503, and open requests have `grace_s` seconds to
    finish. Requests that are still open after that time, or at the second signal, end with status
    503; streams end with an error event and `[DONE]`. Later signals are ignored.

    Args:
        app: Application returned by `make_app`.
        listener: Listening socket.
        grace_s: Grace period after the first signal, in seconds.

    Raises:
        RuntimeError: The server ended without a signal.
    """
    # Exclude existing objects, which live until the end, from later garbage collections, because a
    # collection blocks all threads.
    gc.collect()
    gc.freeze()
    server = uvicorn.Server(uvicorn_config(app))
    events: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            events.put('ended')

    # uvicorn runs in another thread, where it does not install its own signal handlers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: events.put('signal'))
    thread = threading.Thread(target=run, name='server', daemon=True)
    thread.start()
    if events.get() == 'ended':
        raise RuntimeError('The server could not start, or has ended by itself.')
    _drain(app.state.scheduler, events, grace_s)
    server.should_exit = True
    thread.join(2 * _FLUSH_TIMEOUT_S)


def uvicorn_config(app: fastapi.FastAPI) -> uvicorn.Config:
    """Return the settings of the uvicorn server.

    Args:
        app: Application returned by `make_app`.
    """
    return uvicorn.Config(
        app,
        http=_Connection,
        ws='none',
        log_level='warning',
        timeout_graceful_shutdown=int(_FLUSH_TIMEOUT_S),
    )


def _drain(scheduler: Scheduler, events: 'queue.SimpleQueue[str]', grace_s: float) -> None:
    """Wait until all texts are finished, time runs out or an event arrives; then end all texts.

    Args:
        scheduler: Scheduler of the application.
        events: Queue that receives 'signal' for each signal, and 'ended' when the server ends.
        grace_s: Maximum time to wait, in seconds.
    """
    scheduler.drain()
    end = time.monotonic() + grace_s
    while scheduler.num_open_texts and events.empty() and time.monotonic() < end:
        time.sleep(0.05)
    scheduler.end_all()


class _Connection(H11Protocol):
    """An HTTP connection with a timeout for the head of each request.

    Errors of the HTTP protocol are answered in the format of OpenAI's API.
    """

    _head_timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_head_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timeout is not None:
            self._head_timeout.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_head_timeout()

    def send_400_response(self, msg: str) -> None:
        self._send_error(ApiError(400, msg))

    def _update_head_timeout(self) -> None:
        """Start the timeout if the head of a request is awaited, and cancel the timeout if not."""
        if self.conn.their_state is h11.IDLE and self._head_timeout is None:
            error = ApiError(408, f'No request arrived within {_HEAD_TIMEOUT_S:g} seconds.')
            self._head_timeout = self.loop.call_later(_HEAD_TIMEOUT_S, self._send_error, error)
        elif self.conn.their_state is not h11.IDLE and self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None

    def _send_error(self, error: ApiError) -> None:
        """Send an error response, unless a response has started, and close the connection."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = [
                (b'content-type', b'application/json'),
                (b'content-length', str(len(body)).encode()),
                (b'connection', b'close'),
            ]
            response = h11.Response(status_code=error.status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b'')
            # If the body of a request is broken, the application may already be working on a
            # response. Mark the client as disconnected, so that the application stops.
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        self.transport.close()
