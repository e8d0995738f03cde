"""Upstreams' errors, in whatever shape they come, as errors of ours."""

from __future__ import annotations

import msgspec

from shared.http.errors import UpstreamAnswer


def is_error(error: msgspec.Raw, kind: msgspec.Raw) -> bool:
    """Tell whether a JSON object with these values of `error` and `object` reports an error."""
    if bytes(kind) == b'"error"':  # older vLLM
        return True
    return bytes(error) not in {b"null", b"false", b'""', b"{}"}


class _ErrorObject(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    error: _ErrorObject


class _AnyShape(msgspec.Struct):
    error: _ErrorObject | str | None = None
    message: str = ""
    type: str | None = None
    code: str | int | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope, strict=False).decode
_decode_any_shape = msgspec.json.Decoder(_AnyShape, strict=False).decode
_RETRYABLE_BELOW_500 = frozenset({408, 409, 425, 429})


def is_retryable(status: int) -> bool:
    """Tell whether another attempt may do better than this answer."""
    return status >= 500 or status in _RETRYABLE_BELOW_500


def upstream_error(
    status: int, body: bytes, *, retry_after_s: float | None = None
) -> UpstreamAnswer:
    """Translate an upstream's error answer, of whatever shape, into an error of ours.

    A JSON error keeps its message, type and code (vLLM's numeric codes become text); anything else
    is replaced by a sentence with the status, since it may name internal hosts.
    """
    error = _error_object(body)
    return UpstreamAnswer(
        error.message or f"The upstream answered with status {status} and no readable reason.",
        status=status,
        type_=error.type or ("invalid_request_error" if status < 500 else "server_error"),
        code=None if error.code is None else str(error.code),
        is_retryable=is_retryable(status),
        retry_after_s=retry_after_s,
    )


def _error_object(body: bytes) -> _ErrorObject:
    try:
        found = _decode_any_shape(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorObject()
    if isinstance(found.error, _ErrorObject):
        return found.error
    return _ErrorObject(found.error or found.message, found.type, found.code)


def status_of(body: bytes) -> int:
    """Return the status for an error that came without one: what its code says, else 502."""
    code = str(_error_object(body).code)
    is_status = len(code) == 3 and code.isascii() and code.isdigit() and 400 <= int(code) < 600
    # what the upstream thinks of the router's credential is not the client's business
    return int(code) if is_status and code not in {"401", "403"} else 502


def is_envelope(body: bytes) -> bool:
    """Tell whether an error's body can go to the client as it is: `{"error": {"message": …}}`."""
    try:
        return bool(_decode_envelope(body).error.message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
