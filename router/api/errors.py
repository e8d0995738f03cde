"""FastAPI's own errors in OpenAI's envelope."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from shared.http.errors import ApiError, BadRequest, MethodNotAllowed, NotFound


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` leave as an envelope, 404, 405 and validation included."""

    @app.exception_handler(ApiError)
    async def on_api_error(_request: Request, error: ApiError) -> Response:
        return _answer(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):
            return _answer(error.__cause__)  # FastAPI wraps what reading the body raised
        if error.status_code == 404:
            return _answer(NotFound(f"There is no route {request.scope['path'][:128]!r}. See /docs."))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            text = f"Use {allowed} here." if allowed else "This method is not served here."
            return _answer(MethodNotAllowed(text, headers=(("allow", allowed),)))
        # Starlette's own words for a body that it can't read; they quote nothing of it
        return _answer(BadRequest("The request could not be read."))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        problems: Sequence[dict[str, object]] = error.errors()
        first = problems[0] if problems else {}
        place = ".".join(str(part) for part in _location(first)[1:])
        reason = str(first.get("msg", "invalid"))
        return _answer(BadRequest(f"Invalid request: {place or 'body'}: {reason}.", param=place or None))


def _location(problem: dict[str, object]) -> tuple[object, ...]:
    found = problem.get("loc", ())
    return found if isinstance(found, tuple) else ()


def _answer(error: ApiError) -> Response:
    response = Response(error.body(), error.status)
    for name, value in error.response_headers():
        response.headers[name.decode()] = value.decode()
    return response
