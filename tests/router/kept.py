"""Routers whose connections to the engine are kept, and clients whose heads are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx
from sqlalchemy import Connection

from router.store.catalog import get_provider, update_provider
from shared.testing.engine import EngineOptions
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, OneEngine, chat, one_engine, settled

QUICK = EngineOptions(models=("tiny",))


@asynccontextmanager
async def warm(start: StartRouter, **settings: Any) -> AsyncIterator[OneEngine]:
    """Start a router whose connection to the engine is kept, and whose client's head is known."""
    async with one_engine(start, QUICK, **settings) as scene:
        for _ in range(2):
            assert (await scene.client.post(CHAT, json=chat())).status_code == 200
        await settled(scene.router)
        yield scene


def request_of(body: dict[str, Any], *further: str, version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    fields = ("host: localhost", "content-type: application/json", *further)
    lines = [f"POST {CHAT} HTTP/{version}", *fields, f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def answer_from(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    with anyio.fail_after(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, body


def limit(connection: Connection, places: int) -> None:
    provider = get_provider(connection, "engine")
    update_provider(connection, replace(provider, max_in_flight=places))


async def in_flight(router: RunningRouter, count: int = 1) -> None:
    with anyio.fail_after(10):
        while router.router.fleet.in_flight() != count:
            await asyncio.sleep(0.001)


async def ask(client: httpx.AsyncClient) -> None:
    assert (await client.post(CHAT, json=chat())).status_code == 200
