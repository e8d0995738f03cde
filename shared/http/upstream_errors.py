"""Upstreams' errors, in whatever shape they come, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shared.http.errors import UpstreamAnswer

# compared as they are, since every event of every stream is asked
_NO_ERRORS = tuple(map(msgspec.Raw, (b"null", b"false", b'""', b"{}")))
_ERROR_KIND = msgspec.Raw(b'"error"')  # older vLLM


def is_error(error: msgspec.Raw, kind: msgspec.Raw) -> bool:
    """Tell whether a JSON object with these values of `error` and `object` reports an error."""
    return error not in _NO_ERRORS or kind == _ERROR_KIND


class _ErrorObject(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _AnyShape(msgspec.Struct):
    error: _ErrorObject | str | None = None
    message: str = ""
    type: str | None = None
    code: str | int | None = None


_decode_objects = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]]).decode
_decode_text = msgspec.json.Decoder(str).decode
_NULL = msgspec.Raw(b"null")
_decode_any_shape = msgspec.json.Decoder(_AnyShape, strict=False).decode
_RETRYABLE_BELOW_500 = frozenset({408, 409, 425, 429})
OPERATORS_BUSINESS = frozenset({401, 402, 403, 407})
"""Statuses by which an upstream, or a proxy before it, refuses the operator's credential or account."""


def is_retryable(status: int) -> bool:
    """Tell whether another attempt may do better than this answer."""
    return status >= 500 or status in _RETRYABLE_BELOW_500


def upstream_error(
    status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> UpstreamAnswer:
    """Translate an upstream's error answer, of whatever shape, into an error of ours.

    A whole envelope goes on byte for byte. One that lacks keys, or has a number for its code (vLLM,
    llama.cpp), is completed and keeps whatever else it says. Anything else is replaced by a sentence
    with the status, since it may name internal hosts.

    Args:
        status: the answer's status.
        body: its body.
        headers: those of its headers that the client may get.
    """
    error = _error_object(body)
    type_ = error.type or ("invalid_request_error" if status < 500 else "server_error")
    code = None if error.code is None else str(error.code)
    return UpstreamAnswer(
        error.message or f"The upstream answered with status {status} and no readable reason.",
        status=status,
        type_=type_,
        code=code,
        is_retryable=is_retryable(status),
        headers=tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if name != b"content-type"
        ),
        raw=_completed(body, type_, code),
    )


def _completed(body: bytes, type_: str, code: str | None) -> bytes | None:
    """Return the envelope with all its keys; the body itself if nothing is missing, None if alien."""
    try:
        found = _decode_objects(body)["error"]
        message = _decode_text(found["message"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    is_number = bytes(found.get("code", _NULL))[:1] not in {b'"', b"n"}
    if not message:
        return None
    if not is_number and found.keys() >= {"message", "type", "param", "code"}:
        return body
    error = {"param": None, **found, "type": type_, "code": code}
    return msgspec.json.encode({"error": error})


def _error_object(body: bytes) -> _ErrorObject:
    try:
        body.decode()  # msgspec does not look into the raw values
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
    return status_for_client(int(code)) if is_status else 502


def status_for_client(status: int) -> int:
    """Return an error's status; 502 for what is between the upstream, or a proxy, and the operator."""
    return 502 if status in OPERATORS_BUSINESS else status
