"""Routers with engines behind them, and requests to send there: what several tests set up alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from sqlalchemy import Connection

from router.domain import DeploymentEntry, Provider, Scope, Zone
from router.store.catalog import add_model, add_provider
from router.store.keys import create_key
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter

MESSAGES: list[dict[str, str]] = [{"role": "user", "content": "hello small world"}]
CHAT = "/v1/chat/completions"
ENVELOPE = {"message", "type", "param", "code"}


def chat(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": model, "messages": MESSAGES, **fields}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer, which must have the envelope and the headers of one."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == ENVELOPE, error
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-iir-error-origin"] in {"router", "upstream", "agent", "client"}
    return error


def error_event_of(body: bytes) -> dict[str, Any]:
    """Return the error that a stream's last event reports; there must be exactly one."""
    events = [event for event in body.split(b"\n\n") if event]
    assert body.count(b'"error":{') == 1
    error: dict[str, Any] = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert set(error) == ENVELOPE
    return error


def key(scope: Scope = Scope.INFERENCE) -> Any:
    """Return what makes a key when it is written to the registry."""
    return lambda connection: create_key(connection, "test", {scope})


def bearer(credential: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"authorization": f"Bearer {credential}"}


async def settled(router: RunningRouter, *, timeout_s: float = 1.0) -> None:
    """Wait until nothing is in flight."""
    with anyio.fail_after(timeout_s):
        while router.router.fleet.in_flight():
            await anyio.sleep(0.005)


async def usage_of(router: RunningRouter) -> list[dict[str, Any]]:
    """Return the ledger's rows, oldest first."""
    await router.router.ledger.flush()
    rows = router.write(
        lambda c: c.exec_driver_sql("SELECT * FROM usage ORDER BY id").mappings().all()
    )
    return [dict(row) for row in rows]


@dataclass(slots=True)
class OneEngine:
    """A router with the engine `engine`, which serves the model `tiny`."""

    router: RunningRouter
    engine: SimulatedEngine
    upstream: str

    @property
    def client(self) -> httpx.AsyncClient:
        """Return the client of the router."""
        return self.router.client


@asynccontextmanager
async def one_engine(
    start: StartRouter, options: EngineOptions | None = None, **settings: Any
) -> AsyncIterator[OneEngine]:
    """Start a router in front of one engine."""
    engine = SimulatedEngine(options or EngineOptions(models=("tiny",)))
    async with (
        running(engine) as upstream,
        start(upstream=upstream, models=("tiny",), **settings) as router,
    ):
        yield OneEngine(router, engine, upstream)


@dataclass(slots=True)
class TwoEngines:
    """A router whose model `tiny` is on `first`, and if that fails on `second`."""

    router: RunningRouter
    first: SimulatedEngine
    second: SimulatedEngine

    @property
    def client(self) -> httpx.AsyncClient:
        """Return the client of the router."""
        return self.router.client


@asynccontextmanager
async def two_engines(start: StartRouter, **settings: Any) -> AsyncIterator[TwoEngines]:
    """Start a router in front of two engines, of which the first is preferred."""
    first = SimulatedEngine(EngineOptions(models=("tiny",)))
    second = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(first) as first_url,
        running(second) as second_url,
        start(**settings) as router,
    ):
        router.write(lambda c: _register(c, {"first": first_url, "second": second_url}))
        await router.catch_up()
        yield TwoEngines(router, first, second)


def _register(connection: Connection, urls: Mapping[str, str]) -> None:
    for number, (name, url) in enumerate(urls.items(), 1):
        provider = Provider(name=name, dialect="openai", base_url=url, zone=Zone.LOCAL)
        add_provider(connection, provider)
        row = DeploymentEntry(provider=name, upstream_name="tiny", priority=10 * number)
        add_model(connection, "tiny", row)
