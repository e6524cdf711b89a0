"""HTTP responses for errors, in the format of OpenAI's API."""

from collections.abc import Mapping

import fastapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from malora_jax.errors import UserError
from malora_jax.serving.errors import ApiError


class ErrorDetails(BaseModel):
    """The description of an error in an error response, as in OpenAI's API."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or above."""

    error: ErrorDetails


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP response for an error.

    Args:
        error: Error that the client receives.
        headers: Additional headers of the response.
    """
    return JSONResponse(error.body(), error.status, headers)


def add_error_handlers(app: fastapi.FastAPI) -> None:
    """Make the application answer every exception in the format of OpenAI's API."""

    @app.exception_handler(ApiError)
    async def refused(_: fastapi.Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(UserError)
    async def mistaken(_: fastapi.Request, error: UserError) -> Response:
        return error_response(ApiError(422, str(error)))

    @app.exception_handler(HTTPException)
    async def other(http: fastapi.Request, error: HTTPException) -> Response:
        message = f'{http.method} {http.url.path[:100]}: {error.detail}.'
        return error_response(ApiError(error.status_code, message), error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: fastapi.Request, error: Exception) -> Response:
        # Starlette raises the exception again afterwards, so that the server logs its traceback.
        return error_response(ApiError(500, 'The server failed; the log says why.'))
