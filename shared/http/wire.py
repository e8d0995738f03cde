"""The part of a JSON body that a router reads: its top level, with nested values left raw.

Unknown fields, number formats and nesting pass untouched. The body is always encoded anew, so that
a duplicate key can't name a second model to the upstream.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared.http.errors import BadRequest, InvalidJson

MAX_MODEL_NAME = 256
_NULL = msgspec.Raw(b"null")

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_encode = msgspec.json.Encoder().encode


def decode_object(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the top level of a JSON object.

    Raises:
        InvalidJson: the body is empty, not UTF-8, not JSON, or no object.
    """
    try:
        body.decode()
        return _decode_object(body)
    except UnicodeDecodeError:
        raise InvalidJson("The body is not valid UTF-8. Send a JSON object in UTF-8.") from None
    except msgspec.ValidationError:
        raise InvalidJson("The body is not a JSON object. Send an object, like {…}.") from None
    except (msgspec.DecodeError, RecursionError):
        hint = "The body is empty." if not body.strip() else "The body is not valid JSON."
        raise InvalidJson(
            f"{hint} Send a JSON object with `model` and the fields of the API."
        ) from None


def encode_object(values: Mapping[str, object]) -> bytes:
    """Return the object as JSON; raw values go out as they came in."""
    return _encode(values)


def model_name(values: Mapping[str, msgspec.Raw]) -> str:
    """Return the model that a request names.

    Raises:
        BadRequest: there is none, or it is no text of 1 to 256 characters.
    """
    raw = values.get("model")
    if raw is None:
        raise BadRequest(
            "The field `model` is missing. GET /v1/models lists what is there.", param="model"
        )
    try:
        name = _decode_text(raw)
    except msgspec.DecodeError:
        raise BadRequest("The field `model` must be text.", param="model") from None
    if not 0 < len(name) <= MAX_MODEL_NAME:
        raise BadRequest(
            f"The field `model` must have 1 to {MAX_MODEL_NAME} characters.", param="model"
        )
    return name


def wants_stream(values: Mapping[str, msgspec.Raw]) -> bool:
    """Tell whether the answer is to be streamed; absent and null mean no.

    Raises:
        BadRequest: `stream` is neither true, false nor null.
    """
    raw = values.get("stream")
    if raw is None:
        return False
    try:
        return bool(_decode_flag(raw))
    except msgspec.DecodeError:
        raise BadRequest("The field `stream` must be true or false.", param="stream") from None


def with_usage(values: Mapping[str, msgspec.Raw]) -> msgspec.Raw | None:
    """Return `stream_options` that ask for the usage chunk; None if the client asked itself.

    Raises:
        BadRequest: `stream_options` is no object.
    """
    try:
        options = _decode_options(values.get("stream_options", _NULL)) or {}
    except msgspec.DecodeError:
        raise BadRequest(
            "The field `stream_options` must be an object.", param="stream_options"
        ) from None
    if bytes(options.get("include_usage", _NULL)) == b"true":
        return None
    return msgspec.Raw(_encode({**options, "include_usage": True}))
