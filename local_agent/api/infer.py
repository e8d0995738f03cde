"""`POST /infer`: a prompt in, a text out.

`{"prompt": str, "max_tokens": 512, "temperature": 0.7, "stream": false}` (and `model`) becomes one
chat with one user message. The answer is `{"model", "text", "finish_reason", "usage"}`, or with
`stream: true` events `{"text": "…"}`, a last one with `finish_reason` and `usage`, then `[DONE]`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

import msgspec
from starlette.types import Send

from shared.http.asgi import send_body
from shared.http.errors import ApiError, BadRequest, InvalidJson, UpstreamFailed
from shared.http.exchange import Reply
from shared.http.relay import relay
from shared.http.sse import SseFramer, event_data
from shared.http.wire import MAX_MODEL_NAME

_NULL = msgspec.Raw(b"null")
_DONE = b"data: [DONE]\n\n"
_JSON = (b"content-type", b"application/json")
# how msgspec names the field: "at `$.prompt`", "missing required field `prompt`"
_FIELD = re.compile(r"(?:field `|at `\$\.)([a-z_]{1,64})`$")
_MOST_REASON = 200


class InferCall(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/infer`."""

    prompt: str
    max_tokens: int = 512
    temperature: float = 0.7
    stream: bool = False
    model: str = "default"

    @classmethod
    def parse(cls, body: bytes) -> InferCall:
        """Return the call.

        Raises:
            InvalidJson: the body is not JSON.
            BadRequest: a field is missing, unknown or of the wrong type.
        """
        try:
            call = msgspec.json.decode(body, type=cls)
        except msgspec.ValidationError as exc:
            raise _invalid(exc) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidJson(
                'The body is not valid JSON. Send {"prompt": "…"} in UTF-8.'
            ) from None
        if call.max_tokens < 1:
            raise BadRequest("max_tokens must be at least 1.", param="max_tokens")
        if not 0 < len(call.model) <= MAX_MODEL_NAME:
            raise BadRequest(f"model must have 1 to {MAX_MODEL_NAME} characters.", param="model")
        return call

    def chat_values(self) -> Mapping[str, object]:
        """Return the chat request's fields, without the model."""
        values: dict[str, object] = {
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        if self.stream:
            values["stream_options"] = {"include_usage": True}
        return values


def _invalid(error: msgspec.ValidationError) -> BadRequest:
    """Return msgspec's reason, which names the field and the types, never the value."""
    reason = str(error)
    field = _FIELD.search(reason)
    return BadRequest(
        f"Invalid request: {reason[:_MOST_REASON]}.", param=field[1] if field else None
    )


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    usage: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Chat).decode
_encode = msgspec.json.Encoder().encode


async def infer_relay(
    reply: Reply, model: str, send: Send, *, has_begun: bool = False
) -> ApiError | None:
    """Send a chat's reply in the shape of `/infer`; errors stay as they are.

    `has_begun`, and what is returned: see `relay`.
    """
    if reply.status >= 400:
        return await relay(reply, send)
    if reply.is_stream:
        shaped = msgspec.structs.replace(reply, chunks=_texts(reply.chunks))
        return await relay(shaped, send, has_begun=has_begun)
    chat = _parsed(await reply.whole())
    choice = chat.choices[0] if chat.choices else _Choice()
    answer = {
        "model": model,
        "text": (choice.message.content if choice.message else None) or "",
        "finish_reason": choice.finish_reason,
        "usage": chat.usage,
    }
    await send_body(send, 200, [_JSON], _encode(answer))
    return None


async def _texts(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    framer = SseFramer()
    finish_reason: str | None = None
    usage: msgspec.Raw = _NULL
    async for part in chunks:
        for event in framer.feed(part):
            data = event_data(event)
            if data is None or data == b"[DONE]":
                continue
            chat = _parsed(data)
            usage = chat.usage if bytes(chat.usage) != b"null" else usage
            choice = chat.choices[0] if chat.choices else _Choice()
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta is not None and choice.delta.content:
                yield b"data: " + _encode({"text": choice.delta.content}) + b"\n\n"
    yield b"data: " + _encode(
        {"text": "", "finish_reason": finish_reason, "usage": usage}
    ) + b"\n\n"
    yield _DONE


def _parsed(data: bytes) -> _Chat:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed("The worker's answer can't be read.") from None
