"""The outermost layer: what it answers when a service stops, or says something of itself."""

from __future__ import annotations

import asyncio
import json

from starlette.types import Message, Receive, Scope, Send

from shared.http.errors import Unavailable
from shared.http.guard import Guard
from shared.http.origin import OriginRules

RULES = OriginRules("127.0.0.1", "SETTING")


def scope() -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}


async def never() -> Message:
    await asyncio.sleep(60)
    raise AssertionError


async def test_a_request_without_an_answer_yet_hears_that_the_service_stops() -> None:
    sent: list[Message] = []
    begun = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def send(message: Message) -> None:
        sent.append(message)

    guard = Guard(app, rules=RULES, clock=lambda: 0.0)
    task = asyncio.ensure_future(guard(scope(), never, send))
    await begun.wait()
    task.cancel()
    await task
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == "shutting_down"


async def test_a_services_own_errors_carry_its_name() -> None:
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Unavailable("not now")

    async def send(message: Message) -> None:
        sent.append(message)

    await Guard(app, rules=RULES, clock=lambda: 0.0, origin="agent")(scope(), never, send)
    assert (b"x-iir-error-origin", b"agent") in sent[0]["headers"]
