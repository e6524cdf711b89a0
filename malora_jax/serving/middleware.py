"""Middleware that checks requests before they are processed: host, API key, size and time."""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from malora_jax.serving.error_responses import error_response
from malora_jax.serving.errors import ApiError, shutting_down_error

# Maximum size of a request's body in bytes.
MAX_BODY_BYTES = 4 * 2**20


class GuardMiddleware:
    """Middleware that refuses requests with a wrong API key or host, or a large or slow body.

    The host is checked against DNS rebinding: a web page points its own host name at this machine,
    so that the browser lets the page call this server. Such a request has the page's host name in
    its Host header, never an IP address. With an API key no check is needed, because the page does
    not know the key.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        allowed_hosts: Collection[str],
        body_timeout_s: float,
        is_draining: Callable[[], bool],
    ):
        """Wrap an ASGI application.

        Args:
            app: ASGI application.
            api_key: API key that every request must have; None = no key is needed.
            allowed_hosts: Host names under which requests may reach the server, besides IP
                addresses and `localhost`.
            body_timeout_s: Maximum time in seconds for the body of a request to arrive.
            is_draining: Function that returns whether new requests are refused, during shutdown.
        """
        self._app = app
        self._authorization = None if api_key is None else f'Bearer {api_key}'.encode()
        self._hosts = {'localhost', *(host.lower() for host in allowed_hosts)}
        self._body_s = body_timeout_s
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then forward it to the ASGI application or answer with an error."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope['path'], dict(scope['headers']))
        except ApiError as error:
            # Close the connection, because the body remains unread.
            await error_response(error, {'Connection': 'close'})(scope, receive, send)
            return
        await self._app(scope, self._limit_body(receive), send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._is_draining():
            raise shutting_down_error()
        if self._authorization is None:
            self._check_host(headers.get(b'host', b'').decode('latin-1'))
        elif path != '/health' and not hmac.compare_digest(
            headers.get(b'authorization', b''), self._authorization
        ):
            raise ApiError(401, 'The API key is missing or wrong.')
        length = headers.get(b'content-length', b'')
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise too_large()

    def _check_host(self, host: str) -> None:
        if not host:
            return  # Browsers always send a host name, so this request is not from a web page.
        name, _, port = host.rpartition(':')
        name = name if port.isdigit() else host
        if name.lower() in self._hosts:
            return
        try:
            ipaddress.ip_address(name.removeprefix('[').removesuffix(']'))
        except ValueError:
            raise ApiError(
                421, f'The host name {name[:100]!r} is not allowed; add it to --allowed_hosts.'
            ) from None

    def _limit_body(self, receive: Receive) -> Receive:
        """Return a `receive` that raises `ApiError` if the body is too large or too slow."""
        total, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_s

        async def limited() -> Message:
            nonlocal total, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, f'The body did not arrive within {self._body_s:g} seconds.'
                ) from None
            total += len(message.get('body', b''))
            if total > MAX_BODY_BYTES:
                raise too_large()
            is_whole = not message.get('more_body', False)
            return message

        return limited


def too_large() -> ApiError:
    """Return the error with status 413, for a body above the size limit."""
    return ApiError(413, f'The body of a request may have at most {MAX_BODY_BYTES:,} bytes.')
