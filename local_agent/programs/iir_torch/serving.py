"""The HTTP side: OpenAI's chat and completions, health, metrics and a list with the one model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .asking import Encoder, ask_of
from .generation import Line
from .words import Ask, Done, Limits, Refused

_MOST_BODY_BYTES = 32 * 1024 * 1024
_JSON = b"application/json"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


_NO_ROUTE = Refused("there is no such route", status=404)


class Left(Exception):
    """The client has gone away."""


class Server:
    """An ASGI application for one model."""

    def __init__(self, name: str, line: Line, encoder: Encoder, limits: Limits) -> None:
        """Serve under `name`.

        Args:
            name: what answers and the list call the model.
            line: generates.
            encoder: turns requests into tokens; used by one request at a time.
            limits: what prompts are held to.
        """
        self._name = name
        self._line = line
        self._encoder = encoder
        self._limits = limits
        self._encoding = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = (scope["method"], scope["path"])
        with contextlib.suppress(Left):
            try:
                if route == ("GET", "/health"):
                    await _answer(send, 200, b'{"status":"ok"}')
                elif route == ("GET", "/metrics"):
                    await _answer(send, 200, self._metrics(), b"text/plain; version=0.0.4")
                elif route == ("GET", "/v1/models"):
                    listed = {"object": "list", "data": [{"id": self._name, "object": "model"}]}
                    await _answer(send, 200, _encoded(listed))
                elif route in {("POST", "/v1/chat/completions"), ("POST", "/v1/completions")}:
                    await self._generate(receive, send, is_chat="/chat/" in route[1])
                else:
                    await _answer(send, 404, _encoded(_error(_NO_ROUTE)))
            except Refused as refused:
                await _answer(send, refused.status, _encoded(_error(refused)))

    def _metrics(self) -> bytes:
        lines = [
            "# TYPE iir_torch_requests_running gauge",
            f"iir_torch_requests_running {self._line.running}",
            "# TYPE iir_torch_requests_waiting gauge",
            f"iir_torch_requests_waiting {self._line.waiting}",
        ]
        return ("\n".join(lines) + "\n").encode()

    async def _generate(self, receive: Receive, send: Send, *, is_chat: bool) -> None:
        body = await _body(receive)
        ask = await self._ask(body, is_chat=is_chat)
        shape = _Shape(self._name, is_chat=is_chat)
        with self._line.job(ask) as pieces:
            events = _until_left(pieces, receive)
            if body.get("stream"):
                options = body.get("stream_options")
                with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
                await _stream(send, events, shape, ask, with_usage=with_usage)
            else:
                await _whole(send, events, shape, ask)

    async def _ask(self, body: dict[str, Any], *, is_chat: bool) -> Ask:
        async with self._encoding:
            try:
                return await asyncio.to_thread(
                    ask_of, body, self._encoder, self._limits, is_chat=is_chat
                )
            except Refused:
                raise
            except Exception as error:  # noqa: BLE001 - what a tokenizer does not take
                reason = f"the model's tokenizer does not take this: {type(error).__name__}"
                raise Refused(reason) from None


class _Shape:
    """One answer in OpenAI's shape."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._common = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),  # noqa: TID251 - the wire wants the date
            "model": model,
        }

    def begin(self) -> list[dict[str, Any]]:
        """Return what comes in a stream before the text."""
        return [self._chunk({"role": "assistant", "content": ""})] if self._is_chat else []

    def text(self, text: str) -> dict[str, Any]:
        """Return the event of a piece of text."""
        return self._chunk({"content": text} if self._is_chat else text)

    def end(self, reason: str) -> dict[str, Any]:
        """Return the event that says how it ended."""
        return self._chunk({} if self._is_chat else "", reason)

    def usage(self, ask: Ask, done: Done) -> dict[str, Any]:
        """Return the event with the usage."""
        return {**self._common, "object": self._kind(), "choices": [], "usage": _usage(ask, done)}

    def whole(self, text: str, ask: Ask, done: Done) -> dict[str, Any]:
        """Return the answer of a request that does not stream."""
        content = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": done.reason}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._common, "object": kind, "choices": [choice], "usage": _usage(ask, done)}

    def _chunk(self, value: object, reason: str | None = None) -> dict[str, Any]:
        key = "delta" if self._is_chat else "text"
        choice = {"index": 0, key: value, "logprobs": None, "finish_reason": reason}
        return {**self._common, "object": self._kind(), "choices": [choice]}

    def _kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"


async def _stream(
    send: Send,
    events: AsyncIterator[str | Done],
    shape: _Shape,
    ask: Ask,
    *,
    with_usage: bool,
) -> None:
    """Send the events; what goes wrong before the first of them is an answer with its status."""
    has_begun = False
    try:
        async for event in events:
            if not has_begun:
                has_begun = True
                await _send_start(send, 200, b"text/event-stream")
                await _push(send, *shape.begin())
            if isinstance(event, str):
                await _push(send, shape.text(event))
                continue
            usage = [shape.usage(ask, event)] if with_usage else []
            await _push(send, shape.end(event.reason), *usage)
        await _send_body(send, b"data: [DONE]\n\n", is_last=True)
    except Refused as refused:
        if not has_begun:
            raise
        await _push(send, _error(refused))
        await _send_body(send, b"", is_last=True)


async def _push(send: Send, *values: dict[str, Any]) -> None:
    for value in values:
        await _send_body(send, b"data: " + _encoded(value) + b"\n\n")


async def _whole(send: Send, events: AsyncIterator[str | Done], shape: _Shape, ask: Ask) -> None:
    texts: list[str] = []
    async for event in events:
        if isinstance(event, str):
            texts.append(event)
        else:
            await _answer(send, 200, _encoded(shape.whole("".join(texts), ask, event)))


async def _until_left(
    pieces: asyncio.Queue[str | Done | Refused], receive: Receive
) -> AsyncIterator[str | Done]:
    """Give the pieces up to the end.

    Raises:
        Left: the client has gone away.
        Refused: the generation failed.
    """
    leaving = asyncio.ensure_future(_leaving(receive))
    try:
        while True:
            piece = asyncio.ensure_future(pieces.get())
            await asyncio.wait({piece, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                piece.cancel()
                raise Left
            found = piece.result()
            if isinstance(found, Refused):
                raise found
            yield found
            if isinstance(found, Done):
                return
    finally:
        leaving.cancel()


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> dict[str, Any]:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        data += message.get("body", b"")
        if len(data) > _MOST_BODY_BYTES:
            raise Refused("the request is too large", status=413)
        if not message.get("more_body"):
            break
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("the request is no JSON") from None
    if not isinstance(found, dict):
        raise Refused("the request must be a JSON object")
    return found


async def _answer(send: Send, status: int, body: bytes, kind: bytes = _JSON) -> None:
    await _send_start(send, status, kind, len(body))
    await _send_body(send, body, is_last=True)


async def _send_start(send: Send, status: int, kind: bytes, size: int | None = None) -> None:
    headers = [(b"content-type", kind)]
    if size is not None:
        headers.append((b"content-length", str(size).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_body(send: Send, body: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _error(refused: Refused) -> dict[str, Any]:
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": str(refused), "type": kind, "param": None, "code": refused.code}
    return {"error": error}


def _usage(ask: Ask, done: Done) -> dict[str, int]:
    return {
        "prompt_tokens": len(ask.ids),
        "completion_tokens": done.tokens,
        "total_tokens": len(ask.ids) + done.tokens,
    }
