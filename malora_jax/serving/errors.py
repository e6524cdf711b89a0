"""Errors that clients receive, independent of HTTP except for status codes."""

import traceback
from typing import Any


class ApiError(Exception):
    """An error that is the response to a request.

    Attributes:
        status: HTTP status code.
        param: Field of the request that is at fault, or None.
    """

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the error as the JSON object that OpenAI's clients expect."""
        kind = 'invalid_request_error' if self.status < 500 else 'server_error'
        error = {'message': str(self), 'type': kind, 'param': self.param, 'code': self.status}
        return {'error': error}


def log_model_failure() -> ApiError:
    """Return status 500 for the exception that is being handled, and print its traceback."""
    traceback.print_exc()
    return ApiError(500, 'The model failed; the log says why.')


def shutting_down_error() -> ApiError:
    """Return status 503 for a request during shutdown."""
    return ApiError(503, 'The server is shutting down.')
