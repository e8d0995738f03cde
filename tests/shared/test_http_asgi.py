"""Reading bodies within limits, and what a service answers when a request can't be served."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message

from shared.http.asgi import ClientGone, read_body, require_json, send_body, send_error
from shared.http.envelopes import install_error_handlers
from shared.http.errors import (
    ApiError,
    BodyTimeout,
    BodyTooLarge,
    ModelNotFound,
    UnsupportedMediaType,
)
from shared.http.guard import Guard, request_context
from shared.http.origin import OriginRules


class Channel:
    """The two ends of an ASGI request: what comes in piece by piece, and what went out."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        last = len(pieces) - 1
        self.messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": not ends or at < last}
            for at, piece in enumerate(pieces)
        ]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await anyio.sleep_forever()
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        found: int = self.sent[0]["status"]
        return found

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def scope_of(
    path: str = "/", method: str = "POST", headers: Iterable[tuple[bytes, bytes]] = ()
) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


async def test_a_body_in_pieces() -> None:
    channel = Channel(b"ab", b"", b"c")
    assert await read_body(scope_of(), channel.receive, limit=3) == b"abc"


async def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    channel = Channel(b"x")
    scope = scope_of(headers=[(b"content-length", b"10000000000")])
    with pytest.raises(BodyTooLarge, match="MiB") as refused:
        await read_body(scope, channel.receive, limit=32 * 2**20)
    assert "32 MiB" in refused.value.message
    assert len(channel.messages) == 1


async def test_a_body_that_grows_over_the_limit_is_not_read_on() -> None:
    channel = Channel(*[b"x" * 10] * 10)
    with pytest.raises(BodyTooLarge):
        await read_body(scope_of(), channel.receive, limit=25)
    assert len(channel.messages) == 7


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"br", b"gzip, identity", b"x"])
async def test_compressed_bodies_are_refused_unread(encoding: bytes) -> None:
    channel = Channel(b"x")
    scope = scope_of(headers=[(b"content-encoding", encoding)])
    with pytest.raises(UnsupportedMediaType):
        await read_body(scope, channel.receive, limit=9)
    assert len(channel.messages) == 1


async def test_identity_is_no_compression() -> None:
    scope = scope_of(headers=[(b"content-encoding", b"Identity")])
    assert await read_body(scope, Channel(b"x").receive, limit=9) == b"x"


async def test_a_client_that_stops_sending() -> None:
    channel = Channel(b"half", ends=False)
    with pytest.raises(BodyTimeout) as refused:
        await read_body(scope_of(), channel.receive, limit=9, idle_s=0.02)
    assert refused.value.status == 408


async def test_a_client_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel(*[b"x"] * 9, ends=False)
    assert len(await read_body(scope_of(), Channel(*[b"x"] * 9).receive, limit=9)) == 9
    monkeypatch.setattr("shared.http.asgi._LEAST_BYTES_S", 10**12)
    with pytest.raises(BodyTimeout):
        await read_body(scope_of(), channel.receive, limit=9, grace_s=0.0)
    assert len(channel.messages) == 7


async def test_a_client_that_leaves_while_sending() -> None:
    channel = Channel(b"half", ends=False)
    channel.messages.append({"type": "http.disconnect"})
    with pytest.raises(ClientGone):
        await read_body(scope_of(), channel.receive, limit=9)


@pytest.mark.parametrize("value", [b"application/json", b"Application/JSON; charset=utf-8"])
def test_json_is_taken(value: bytes) -> None:
    require_json(scope_of(headers=[(b"content-type", value)]))


@pytest.mark.parametrize(
    "value", [b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data", b""]
)
def test_what_a_page_can_send_unasked_is_not(value: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        require_json(scope_of(headers=[(b"content-type", value)]))
    with pytest.raises(UnsupportedMediaType):
        require_json(scope_of())


async def test_a_whole_answer_has_its_length() -> None:
    channel = Channel()
    await send_body(channel.send, 200, [(b"x", b"1")], b"abc")
    assert channel.headers == {b"x": b"1", b"content-length": b"3"}
    assert channel.body == b"abc"


async def test_an_error_is_a_whole_answer() -> None:
    channel = Channel()
    await send_error(channel.send, ModelNotFound("no", param="model"), [(b"x", b"1")])
    assert channel.status == 404
    assert channel.headers[b"content-length"] == str(len(channel.body)).encode()
    assert channel.error["code"] == "model_not_found"


class Item(BaseModel):
    name: str
    size: int


def framework() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install_error_handlers(app, invalid=RequestValidationError)

    @app.put("/items/{number}")
    async def put(number: int, item: Item) -> Item:
        return item

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("secret sk-iir-x")

    @app.get("/refuses")
    async def refuses() -> None:
        raise ModelNotFound("no such", param="model", headers=(("x-own", "1"),))

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short")

    return app


def guarded(app: ASGIApp) -> Guard:
    return Guard(app, rules=OriginRules("127.0.0.1", "X"), clock=lambda: 1.0)


async def call(app: ASGIApp, channel: Channel, **scope: Any) -> Channel:
    await app(scope_of(**scope), channel.receive, channel.send)
    return channel


JSON_HEADERS = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/nothing", b"", 404, "not_found", None),
        ("GET", "/items/1", b"", 405, "method_not_allowed", None),
        ("PUT", "/items/1/", b"{}", 404, "not_found", None),
        ("PUT", "/items/x", b'{"name":"a","size":1}', 400, "invalid_request", "number"),
        ("PUT", "/items/1", b'{"name":"a","size":"b"}', 400, "invalid_request", "size"),
        ("PUT", "/items/1", b'{"size":1}', 400, "invalid_request", "name"),
        ("PUT", "/items/1", b"", 400, "invalid_request", None),
        ("PUT", "/items/1", b"{", 400, "invalid_json", None),
        ("PUT", "/items/1", b"\xff", 400, "invalid_request", None),
        ("PUT", "/items/1", b"[" * 100_000, 400, "invalid_request", None),
        ("GET", "/refuses", b"", 404, "model_not_found", "model"),
        ("GET", "/teapot", b"", 400, "invalid_request", None),
        ("GET", "/fails", b"", 500, "internal_error", None),
    ],
)
async def test_every_error_of_a_framework_leaves_as_an_envelope(
    method: str, path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    app = guarded(framework())
    found = await call(app, Channel(body), method=method, path=path, headers=JSON_HEADERS)
    assert found.status == status
    assert found.error["code"] == code
    assert found.error["param"] == param
    assert set(found.error) == {"message", "type", "param", "code"}
    assert b"secret" not in found.body
    assert found.headers[b"x-request-id"].startswith(b"req_")
    assert found.headers[b"content-type"] == b"application/json"


async def test_405_says_what_is_allowed_and_headers_of_errors_pass() -> None:
    found = await call(guarded(framework()), Channel(b""), method="POST", path="/items/1")
    assert found.headers[b"allow"] == b"PUT"
    assert "PUT" in found.error["message"]
    found = await call(guarded(framework()), Channel(b""), method="GET", path="/refuses")
    assert found.headers[b"x-own"] == b"1"
    assert found.headers[b"x-iir-error-origin"] == b"client"


async def test_a_405_without_a_list_of_methods() -> None:
    app = framework()

    @app.get("/odd")
    async def odd() -> None:
        raise HTTPException(405)

    found = await call(guarded(app), Channel(b""), method="GET", path="/odd")
    assert (found.status, found.error["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        (b"req-1", True),
        (b"A.b_c:d-9", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"two words", False),
        (b"new\nline", False),
        (b"\xc3\xa4", False),
        (b"req-1\n", False),
        (b"<script>", False),
    ],
)
async def test_a_sane_request_id_is_kept_and_any_other_replaced(
    given: bytes, is_kept: bool
) -> None:
    ids: list[str] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        ids.append(request_context(scope).request_id)
        await send_body(send, 200, [], b"")

    found = await call(guarded(app), Channel(), headers=[(b"x-request-id", given)])
    answered = found.headers[b"x-request-id"]
    assert (answered == given) is is_kept
    assert ids == [answered.decode()]
    assert is_kept or answered.startswith(b"req_")


async def test_an_error_after_the_head_leaves_the_answer_without_its_end() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ApiError("broke off")

    found = await call(guarded(app), Channel())
    assert len(found.sent) == 1


async def test_a_client_that_left_gets_no_answer() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ClientGone

    assert (await call(guarded(app), Channel())).sent == []


async def test_a_foreign_host_is_refused_before_anything_else() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("reached")

    channel = Channel()
    scope = {**scope_of(), "headers": [(b"host", b"evil.example")]}
    await guarded(app)(scope, channel.receive, channel.send)
    assert (channel.status, channel.error["code"]) == (403, "host_not_allowed")
    assert b"x-request-id" in channel.headers
