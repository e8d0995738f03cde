"""A framework's own errors in OpenAI's envelope: 404, 405 and validation included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shared import __version__
from shared.http.errors import (
    ApiError,
    BadRequest,
    InvalidJson,
    MethodNotAllowed,
    internal_error,
    no_route,
)

AppT = TypeVar("AppT", bound=Starlette)


class _Invalid(Protocol):
    def errors(self) -> Sequence[Mapping[str, Any]]: ...


def framework_app(
    kind: Callable[..., AppT],
    title: str,
    *,
    dependencies: Sequence[object],
    invalid: type[Exception],
) -> AppT:
    """Return an application of a framework like FastAPI: without pages of its own, errors as envelopes.

    Args:
        kind: makes it.
        title: what it is called.
        dependencies: what it resolves for each request.
        invalid: see `install_error_handlers`.
    """
    app = kind(
        title=title,
        version=__version__,
        dependencies=dependencies,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    install_error_handlers(app, invalid=invalid)
    return app


def install_error_handlers(app: Starlette, *, invalid: type[Exception]) -> None:
    """Make every error of `app` leave as an envelope.

    Args:
        app: the application.
        invalid: the framework's exception for a body that does not fit its model; has `errors()`.
    """

    async def on_api_error(_request: Request, error: Exception) -> Response:
        return _answer(cast("ApiError", error))

    async def on_http_error(request: Request, error: Exception) -> Response:
        return _answer(_translated(request, cast("HTTPException", error)))

    async def on_invalid(_request: Request, error: Exception) -> Response:
        return _answer(_first_problem(cast("_Invalid", error).errors()))

    async def on_defect(_request: Request, _error: Exception) -> Response:
        return _answer(internal_error())  # the framework raises the error again, for the log

    app.add_exception_handler(Exception, on_defect)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(invalid, on_invalid)


def _translated(request: Request, error: HTTPException) -> ApiError:
    if isinstance(error.__cause__, ApiError):
        return error.__cause__  # FastAPI wraps what reading the body raised
    if error.status_code == 404:
        return no_route(request.scope["path"])
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        text = f"Use {allowed} here." if allowed else "This method is not served here."
        return MethodNotAllowed(text, headers=(("allow", allowed),))
    return BadRequest("The request could not be read.")


def _first_problem(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    first = problems[0] if problems else {}
    if first.get("type") == "json_invalid":
        return InvalidJson("The body is not valid JSON. Send a JSON object.")
    # the first part of the place says body, query or path
    place = ".".join(str(part) for part in tuple(first.get("loc", ()))[1:])
    reason = first.get("msg", "invalid")
    return BadRequest(f"Invalid request: {place or 'body'}: {reason}.", param=place or None)


def _answer(error: ApiError) -> Response:
    response = Response(error.body(), error.status)
    for name, value in error.response_headers():
        response.headers[name.decode()] = value.decode()
    return response
