"""Errors that clients of the server receive; `error_responses` converts them to responses."""

import traceback
from typing import Any


class ApiError(Exception):
    """An error that ends a request, with its HTTP status and a message for the client.

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
    """Return the error with status 500 for the exception being handled; print its traceback."""
    traceback.print_exc()
    return ApiError(500, 'The model failed; the log says why.')


def shutting_down_error() -> ApiError:
    """Return the error with status 503, for requests during shutdown."""
    return ApiError(503, 'The server is shutting down.')
