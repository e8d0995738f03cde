"""Limits on the bodies of a framework's routes: of size, of time, and to whom."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp

from shared.http.asgi import send_body
from shared.http.body_limit import BodyLimit
from shared.http.errors import Unauthorized
from tests.shared.test_http_asgi import JSON_HEADERS, Channel, call, framework, guarded


def limited(app: ASGIApp, limit: int, **limits: float) -> BodyLimit:
    return BodyLimit(app, limit, authorize=lambda _scope: None, **limits)


@pytest.mark.parametrize("declared", [True, False])
async def test_the_body_limit_answers_413(declared: bool) -> None:
    app = guarded(limited(framework(), 20))
    body = b'{"name":"' + b"x" * 100 + b'","size":1}'
    length = [(b"content-length", str(len(body)).encode())] if declared else []
    found = await call(
        app,
        Channel(body[:10], body[10:]),
        method="PUT",
        path="/items/1",
        headers=[*JSON_HEADERS, *length],
    )
    assert (found.status, found.error["code"]) == (413, "request_too_large")


async def test_a_body_that_stops_is_given_up() -> None:
    app = guarded(limited(framework(), 40, idle_s=0.02))
    found = await call(
        app, Channel(b"{", ends=False), method="PUT", path="/items/1", headers=JSON_HEADERS
    )
    assert (found.status, found.error["code"]) == (408, "request_timeout")
    assert found.headers[b"connection"] == b"close"


async def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.http.asgi._LEAST_BYTES_S", 10**12)
    channel = Channel(*[b" "] * 9, ends=False)
    app = guarded(limited(framework(), 40, grace_s=0.0))
    found = await call(app, channel, method="PUT", path="/items/1", headers=JSON_HEADERS)
    assert (found.status, found.error["code"]) == (408, "request_timeout")
    assert len(channel.messages) == 7


async def test_a_stranger_is_refused_before_the_body_is_read() -> None:
    def refuse(scope: Any) -> None:
        assert scope["endpoint"].__name__ == "put"  # it is known by then what it needs
        raise Unauthorized("Who are you?")

    channel = Channel(b"x" * 30, b"x" * 30, ends=False)
    app = guarded(BodyLimit(framework(), 40, authorize=refuse))
    length = (b"content-length", b"60")
    found = await call(app, channel, method="PUT", path="/items/1", headers=[*JSON_HEADERS, length])
    assert (found.status, found.error["code"]) == (401, "invalid_api_key")
    assert len(channel.messages) == 2


async def test_whoever_waits_for_the_client_to_leave_may_wait_long() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"x"
        with anyio.move_on_after(0.05) as waited:
            await receive()
        assert waited.cancelled_caught
        await send_body(send, 200, [], b"")

    assert (await call(limited(app, 40, idle_s=0.01), Channel(b"x"))).status == 200


async def test_a_small_body_passes_the_limit() -> None:
    app = guarded(limited(framework(), 40))
    found = await call(
        app, Channel(b'{"name":"a","size":1}'), method="PUT", path="/items/1", headers=JSON_HEADERS
    )
    assert (found.status, found.body) == (200, b'{"name":"a","size":1}')


async def test_start_and_stop_pass_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    channel = Channel()
    layers = guarded(limited(app, 1))
    await layers({"type": "lifespan"}, channel.receive, channel.send)
    assert seen == ["lifespan"]
    await layers({"type": "websocket"}, channel.receive, channel.send)
    assert channel.sent == [{"type": "websocket.close", "code": 1008}]
