"""One error tree for both services, rendered once, in OpenAI's shape.

Messages name the cause and the next step. They never hold a key, a prompt or an address that the
caller may not know. Shape: OpenAI's specification, `{"error": {message, type, param, code}}`.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from shared.http.error_codes import EXPLANATIONS, page_of

Origin = Literal["router", "agent", "upstream", "client"]
Raised = TypeVar("Raised", bound="ApiError")


class ApiError(Exception):
    """An answer that is not a success: status, OpenAI `type` and `code`, and who caused it.

    `is_retryable`: another attempt (on another endpoint, or later) may succeed.
    """

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    origin: Origin = "router"
    is_retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Hold the message for the client; `retry_after_s` becomes `retry-after`, rounded up."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers
        self._reshaped: bytes | None = None

    def fresh(self: Raised) -> Raised:  # noqa: PYI019 - typing has no Self before Python 3.11
        """Return the same error, without its trace: the one to raise, or the one to keep, where both are done.

        Kept and raised, an error leads to the frames that it passed through, and they to whoever keeps it: a
        circle that holds a request's text until the collector comes by.
        """
        made = type(self).__new__(type(self), *self.args)
        made.__dict__.update(self.__dict__)
        made.__cause__ = self.__cause__
        return made

    def reshape(self, body: bytes) -> None:
        """Take another API's shape: `body` is what `body` returns from now on."""
        self._reshaped = body

    def body(self) -> bytes:
        """Return the JSON body."""
        if self._reshaped is not None:
            return self._reshaped
        return error_body(self.message, type_=self.type, code=self.code, param=self.param)

    def event(self) -> bytes:
        """Return the error as an SSE event: what is left to say once headers are out."""
        return b"data: " + self.body() + b"\n\n"

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer, without `content-length`.

        A code of ours links to its page (RFC 8288; the relation `help` is HTML's).
        """
        found = [
            (b"content-type", b"application/json"),
            (b"x-iir-error-origin", self.origin.encode()),
        ]
        if self.code in EXPLANATIONS:  # an upstream's own code may be anything
            found.append((b"link", f'<{page_of(self.code)}>; rel="help"'.encode()))
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        found.extend(
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers
        )
        return found


def internal_error() -> ApiError:
    """Return the error for what went wrong unexpectedly; its cause is in the log only."""
    return ApiError("The service met an internal error. Look for this request id in its log.")


def error_body(
    message: str, *, type_: str, code: str | None, param: str | None = None, **more: object
) -> bytes:
    """Return OpenAI's error envelope as JSON; all four keys are always there, `more` follow them."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": type_, "param": param, "code": code, **more}}
    )


class BadRequest(ApiError):
    """The request can't be understood or is not allowed to be sent like this."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    origin = "client"


class InvalidJson(BadRequest):
    """The body is not a JSON object."""

    code = "invalid_json"


class Unauthorized(ApiError):
    """No key, or one that is not known."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    origin = "client"


class Forbidden(ApiError):
    """A known caller that may not do this, or a request from a foreign web page."""

    status = 403
    type = "invalid_request_error"
    code = "forbidden"
    origin = "client"


class HostNotAllowed(Forbidden):
    """The Host header names a host that this service does not answer for."""

    code = "host_not_allowed"


class CrossSiteRefused(Forbidden):
    """A web page of another origin sent the request."""

    code = "cross_site_request"


class NotFound(ApiError):
    """No such route or thing."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    origin = "client"


def no_route(path: str) -> NotFound:
    """Return the error of a path that nothing serves."""
    return NotFound(f"There is no route {path[:128]!r}. The API lies below /v1.")


class ModelNotFound(NotFound):
    """No model or alias has this name."""

    code = "model_not_found"


class ModelNotPulled(NotFound):
    """The model is known, but its weights are not on this host. SDKs would retry a 503."""

    code = "model_not_pulled"


class UnsupportedApi(NotFound):
    """The model is known, but nothing that serves it speaks the API of this route."""

    code = "unsupported_api"


class MethodNotAllowed(ApiError):
    """The route exists, with other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    origin = "client"


class BodyTimeout(ApiError):
    """The client stopped sending its request, in the head or in the body."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    origin = "client"


class Conflict(ApiError):
    """The request contradicts the present state."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
    origin = "client"


class BodyTooLarge(ApiError):
    """The body is over the limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"
    origin = "client"


class UrlTooLong(BadRequest):
    """The URL is over the limit."""

    status = 414
    code = "url_too_long"


class HeadersTooLarge(BadRequest):
    """The request's head is over the limit."""

    status = 431
    code = "headers_too_large"


class UnsupportedMediaType(ApiError):
    """The content type or encoding is not taken here."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"
    origin = "client"


class Unavailable(ApiError):
    """Nothing can serve this now; later it may."""

    status = 503
    type = "server_error"
    code = "unavailable"
    is_retryable = True


class ModelLoading(Unavailable):
    """The model is on its way."""

    code = "model_loading"


class QueueFull(ApiError):
    """Too many requests wait for the model already."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    is_retryable = True


class QueueTimeout(Unavailable):
    """Nothing that serves the model came free while the request waited."""

    code = "queue_timeout"


class ShuttingDown(Unavailable):
    """The service stops before the answer is complete."""

    code = "shutting_down"


class UpstreamUnreachable(ApiError):
    """The endpoint did not take the connection."""

    status = 502
    type = "server_error"
    code = "upstream_unreachable"
    origin = "upstream"
    is_retryable = True


class UpstreamTimeout(ApiError):
    """The endpoint took the connection and did not answer in time."""

    status = 504
    type = "server_error"
    code = "upstream_timeout"
    origin = "upstream"
    is_retryable = True


class UpstreamFailed(ApiError):
    """The endpoint answered with something that is no answer."""

    status = 502
    type = "server_error"
    code = "upstream_failed"
    origin = "upstream"
    is_retryable = True


class UpstreamCredentialRefused(ApiError):
    """The endpoint did not take the router's credential: the operator's business, not the client's."""

    status = 502
    type = "server_error"
    code = "upstream_credential_refused"
    origin = "upstream"
    is_retryable = True


class UpstreamUnpaid(UpstreamCredentialRefused):
    """The endpoint wants to be paid: the operator's business as well."""

    code = "upstream_unpaid"


class UpstreamAnswer(ApiError):
    """An error that the endpoint answered: its status, type, code and message, its headers.

    `raw` is the body for the client, where the endpoint's own will do.
    """

    origin: Origin = "upstream"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type_: str,
        code: str | None,
        is_retryable: bool,
        headers: tuple[tuple[str, str], ...] = (),
        raw: bytes | None = None,
    ) -> None:
        """Take the answer's parts; a missing `code` becomes `upstream_error`."""
        super().__init__(message, headers=headers)
        self._raw = raw
        self.status = status
        self.type = type_
        self.code = code or "upstream_error"
        self.is_retryable = is_retryable

    def body(self) -> bytes:
        """See `ApiError.body`."""
        return super().body() if self._raw is None or self._reshaped is not None else self._raw

    def event(self) -> bytes:
        """See `ApiError.event`; a body of several lines would be several lines of an event."""
        return b"data: " + msgspec.json.format(self.body(), indent=-1) + b"\n\n"


class UpstreamInterrupted(ApiError):
    """The endpoint broke off in the middle of its answer."""

    status = 502
    type = "server_error"
    code = "upstream_interrupted"
    origin = "upstream"
    is_retryable = True


class StaleConnection(UpstreamInterrupted):
    """The endpoint closed a kept connection just when the request was sent on it.

    It tells nothing of the endpoint, which most likely never saw the request.
    """


def explain(code: str) -> str:
    """Return the page of an error code, as `/errors/CODE` shows it.

    Raises:
        NotFound: it is none of ours.
    """
    found = EXPLANATIONS.get(code)
    if found is None:
        raise NotFound(
            "There is no such error code here. An upstream's own codes pass as they are."
        )
    return found.page(code)
