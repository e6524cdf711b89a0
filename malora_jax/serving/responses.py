"""HTTP responses for errors, in the format of OpenAI's API."""

from collections.abc import Mapping

import fastapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from malora_jax.errors import UserError
from malora_jax.serving.errors import RefusedError


class ErrorDetails(BaseModel):
    """The description of an error, as in OpenAI's API."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or above."""

    error: ErrorDetails


def respond(error: RefusedError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP response for an error.

    Args:
        error: Error that the client receives.
        headers: Additional headers of the response.
    """
    return JSONResponse(error.body(), error.status, headers)


def handle_errors(app: fastapi.FastAPI) -> None:
    """Make the application answer every exception in the format of OpenAI's API."""

    @app.exception_handler(RefusedError)
    async def refused(_: fastapi.Request, error: RefusedError) -> Response:
        return respond(error)

    @app.exception_handler(UserError)
    async def mistaken(_: fastapi.Request, error: UserError) -> Response:
        return respond(RefusedError(422, str(error)))

    @app.exception_handler(HTTPException)
    async def other(http: fastapi.Request, error: HTTPException) -> Response:
        message = f'{http.method} {http.url.path[:100]}: {error.detail}.'
        return respond(RefusedError(error.status_code, message), error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: fastapi.Request, error: Exception) -> Response:
        # Starlette raises the exception again afterwards, so that the server logs its traceback.
        return respond(RefusedError(500, 'The server failed; the log says why.'))
