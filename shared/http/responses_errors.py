"""Errors in streams of OpenAI's Responses: the event `error`, and a response that failed.

Source of the codes: OpenAI's specification 2.3.0, `ResponseErrorCode`.
"""

from __future__ import annotations

import msgspec

from shared.http.errors import UpstreamAnswer
from shared.http.upstream_errors import status_of, upstream_error

_STATUSES = {"server_error": 500, "rate_limit_exceeded": 429, "vector_store_timeout": 504}
# what these begin with is the fault of the request: its prompt, its images
_OF_THE_CLIENT = (
    "invalid_",
    "image_",
    "unsupported_image_",
    "empty_image_",
    "failed_to_download_image",
)


class _Reason(msgspec.Struct):
    code: str | None = None
    message: str = ""


class _Failed(msgspec.Struct):
    error: _Reason | None = None


class _Event(msgspec.Struct):
    response: _Failed | None = None
    error: _Reason | None = None
    code: str | None = None
    message: str = ""


_decode = msgspec.json.Decoder(_Event).decode


def responses_stream_error(data: bytes) -> UpstreamAnswer:
    """Return the error that an event reports; its status follows from its code.

    Args:
        data: of `response.failed`, of `error`, or of an error in another API's shape.
    """
    try:
        event = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return upstream_error(status_of(data), data)
    reason = (event.response and event.response.error) or event.error
    code = reason.code if reason is not None else event.code
    message = reason.message if reason is not None else event.message
    status = _status(code or "")
    if status is None:
        status = status_of(data)
    body = {"message": message, "param": None, "code": code}
    return upstream_error(status, msgspec.json.encode({"error": body}))


def _status(code: str) -> int | None:
    if code.startswith(_OF_THE_CLIENT):
        return 400
    return _STATUSES.get(code)
