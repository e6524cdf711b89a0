"""Errors that a client is told, without anything of HTTP but its status codes."""

import traceback
from typing import Any


class RefusedError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: HTTP status.
        param: Field of the request that is at fault, or None.
    """

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON object that OpenAI's clients expect."""
        kind = 'invalid_request_error' if self.status < 500 else 'server_error'
        error = {'message': str(self), 'type': kind, 'param': self.param, 'code': self.status}
        return {'error': error}


def failed() -> RefusedError:
    """Return the error for the exception that is being handled, and print its traceback."""
    traceback.print_exc()
    return RefusedError(500, 'The model failed; the log says why.')


def shutting_down() -> RefusedError:
    """Return the error for a request that the server has no more time for."""
    return RefusedError(503, 'The server is shutting down.')
