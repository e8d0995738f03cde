"""Errors in the shape of Anthropic's Messages: `{"type": "error", "error": {type, message}}`.

Its SDKs choose their exception by the HTTP status, and show the inner `type` beside it.
"""

from __future__ import annotations

import msgspec

from shared.http.errors import ApiError, UpstreamAnswer
from shared.http.upstream_errors import status_of, upstream_error

REQUEST_ID = b"request-id"
"""The header in which Anthropic's SDKs look for a request's id."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# what an upstream says of the router's own account is not the client's business
_STATUSES = {
    "invalid_request_error": 400,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def anthropic_error_body(error: ApiError) -> bytes:
    """Return an error as a JSON body."""
    default = "invalid_request_error" if error.status < 500 else "api_error"
    type_ = _TYPES.get(error.status, default)
    return msgspec.json.encode(
        {"type": "error", "error": {"type": type_, "message": error.message, "code": error.code}}
    )


def anthropic_stream_error(data: bytes) -> UpstreamAnswer:
    """Return the error that an event reports, in whatever shape; its status follows from its type."""
    error = upstream_error(status_of(data), data)
    status = _STATUSES.get(error.type, error.status)
    return error if status == error.status else upstream_error(status, data)
