"""A small gateway as llm-d's clusters have one: it refuses as told, else a simulated vLLM answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from router.domain import DeploymentEntry
from router.store.catalog import add_model
from shared.testing.engine import EngineOptions, SimulatedEngine
from shared.testing.wire import Exchange, Request, WireServer
from tests.router.harness import RunningRouter, StartRouter

TEXT = ("content-type", "text/plain")
REASON = "x-llm-d-request-dropped-reason"
# as Envoy writes it
RESET = "upstream connect error or disconnect/reset before headers. reset reason: "
POD_REFUSED = (
    f"{RESET}remote connection failure, transport failure reason: delayed connect error: 111"
)
Answering = Callable[[Exchange], Awaitable[None]]


def refusal(status: int, body: str = "", reason: str = "", **headers: str) -> Answering:
    """Return what answers in place of a pod: text, or nothing, and why."""

    async def answering(exchange: Exchange) -> None:
        is_text = body and "content-type" not in headers
        found = [*([TEXT] if is_text else []), *headers.items()]
        found += [(REASON, reason)] if reason else []
        await exchange.send_head(status, found, length=len(body))
        await exchange.send_body(body.encode("latin-1"))

    return answering


async def hang(_exchange: Exchange) -> None:
    """Take the request and never answer."""
    await asyncio.Event().wait()


SATURATED = refusal(
    429, "inference error: ResourceExhausted - request rejected", "rejected-saturated"
)
COLD = refusal(503, "inference error: ServiceUnavailable - no endpoints", "rejected-no-endpoints")
PICKER_GONE = refusal(500)
POD_GONE = refusal(503, POD_REFUSED)
POD_BROKE_OFF = refusal(503, f"{RESET}connection termination")
ROUTE_TIMEOUT = refusal(504, "upstream request timeout")
NO_PODS = refusal(500, "inference error: Internal - no pods available in datastore")


class FakeGateway:
    """Has one pod, the engine `pod`, and answers itself what is queued in `next` or set in `listing`.

    `requests` are those for the pod, `seen` the looks as well, without those at the metrics.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.pod = SimulatedEngine(options)
        self.next: deque[Answering] = deque()
        self.listing: Answering | None = None
        self.metrics = b""
        self.requests: list[Request] = []
        self.seen: list[Request] = []
        self.probes = 0
        self.server = WireServer(self._answer)

    async def _answer(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/metrics":
            await exchange.send_head(200, [TEXT], length=len(self.metrics))
            await exchange.send_body(self.metrics)
            return
        self.seen.append(exchange.request)
        if path == "/v1/models":
            self.probes += 1
            await (self.listing or self.pod.handle)(exchange)
            return
        self.requests.append(exchange.request)
        await (self.next.popleft() if self.next else self.pod.handle)(exchange)


@asynccontextmanager
async def gateway(*models: str, **options: Any) -> AsyncIterator[tuple[FakeGateway, str]]:
    """Run a gateway whose pod serves these models; yields it with its address."""
    found = FakeGateway(EngineOptions(models=models or ("tiny",), **options))
    url = await found.server.start("127.0.0.1", 0)
    try:
        yield found, url
    finally:
        await found.server.close()
        assert found.server.failures == []


@asynccontextmanager
async def cluster(
    start: StartRouter, *models: str, **settings: Any
) -> AsyncIterator[tuple[RunningRouter, FakeGateway]]:
    """Run a router with a cluster, which it has looked at."""
    async with (
        gateway(*models) as (found, url),
        start(llmd_endpoint=settings.pop("llmd_endpoint", url), **settings) as router,
    ):
        yield router, found


async def deploy(router: RunningRouter, model: str = "tiny", **fields: Any) -> None:
    """Give a model of the cluster a row."""
    row = DeploymentEntry(provider="llmd", upstream_name=model, **fields)
    router.write(lambda c: add_model(c, model, row))
    await router.catch_up()
