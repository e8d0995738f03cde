"""The contract of cancellation, over the real wire: uvicorn on uvloop, and the lean transport.

In whatever phase the client leaves, what is behind its request ends within 100 ms: the upstream's
connection, the slot, the place in the queue; and the ledger says `abandoned`, once.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import psutil
import pytest
import uvloop
from sqlalchemy import Connection

from router.domain import DeploymentEntry, Provider, Ranked, Zone
from router.store.catalog import add_model, add_provider
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.raw_client import connected, render_request
from shared.testing.steps import Latency
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, usage_of

ROUNDS = 5
AS_A_RULE_S, AT_WORST_S = 0.1, 1.0
SLOW = Latency(itl_s=0.02)


@dataclass(slots=True)
class Scene:
    """A router whose model `tiny` is on `first`, then on `second`, which take one request each.

    The model `mute` is at a port where connecting never comes to an end, `deaf` at one where nobody
    reads what is sent.
    """

    router: RunningRouter
    first: SimulatedEngine
    second: SimulatedEngine
    mute_port: int
    deaf_port: int


@contextmanager
def mute_listener() -> Iterator[int]:
    """Yield a port where connecting never comes to an end: its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@contextmanager
def deaf_listener() -> Iterator[int]:
    """Yield a port where the system takes connections, and nobody reads."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2 * ROUNDS)
        yield listener.getsockname()[1]


FILLERS = 2


def sockets_to(port: int) -> int:
    """Return how many connections this process has to there, or is making."""
    found = psutil.Process().net_connections("tcp4")
    return sum(bool(each.raddr) and each.raddr[1] == port for each in found)


@asynccontextmanager
async def scene_of(start: StartRouter, **settings: Any) -> AsyncIterator[Scene]:
    first, second = (
        SimulatedEngine(EngineOptions(models=("tiny",), tokens=200, latency=SLOW)) for _ in range(2)
    )
    with mute_listener() as mute_port, deaf_listener() as deaf_port:
        async with (
            running(first) as first_url,
            running(second) as second_url,
            start(router_retry_share=1, **settings) as router,
        ):
            rows = (
                ("first", first_url, "tiny", 10),
                ("second", second_url, "tiny", 20),
                ("mute", f"http://127.0.0.1:{mute_port}", "mute", 10),
                ("deaf", f"http://127.0.0.1:{deaf_port}", "deaf", 10),
            )
            router.write(lambda connection: register(connection, rows))
            await router.catch_up()
            yield Scene(router, first, second, mute_port, deaf_port)


def register(connection: Connection, rows: Sequence[tuple[str, str, str, int]]) -> None:
    for name, url, model, priority in rows:
        provider = Provider(
            name=name, dialect="openai", base_url=url, zone=Zone.LOCAL, max_in_flight=1
        )
        add_provider(connection, provider)
        row = DeploymentEntry(provider=name, upstream_name=model, priority=priority)
        add_model(connection, model, row)


Reader = asyncio.StreamReader


@dataclass(frozen=True, slots=True)
class Phase:
    """How a request comes into a phase, and what tells that all behind it has ended.

    `rows` are attempt and error of its rows in the ledger, oldest first.
    """

    body: dict[str, Any]
    reached: Callable[[Scene, Reader], Awaitable[None]]
    ended: Callable[[Scene], bool]
    rows: tuple[tuple[int, str], ...] = ((1, "abandoned"),)
    first: str = ""
    second: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    is_full: bool = False


def asked(engine: str) -> Callable[[Scene, Reader], Awaitable[None]]:
    async def reached(scene: Scene, _reader: Reader) -> None:
        found: SimulatedEngine = getattr(scene, engine)
        await found.journal.wait_for(lambda: bool(found.requests))
        await asyncio.sleep(0.01)

    return reached


def closed(engine: str) -> Callable[[Scene], bool]:
    def ended(scene: Scene) -> bool:
        found: SimulatedEngine = getattr(scene, engine)
        return all(seen.aborted for seen in found.requests)

    return ended


def heard(text: bytes) -> Callable[[Scene, Reader], Awaitable[None]]:
    async def reached(_scene: Scene, reader: Reader) -> None:
        await reader.readuntil(text)

    return reached


async def is_queued(scene: Scene, _reader: Reader) -> None:
    with anyio.fail_after(2):
        while not scene.router.router.admission.waiting:
            await asyncio.sleep(0.001)


def left_the_queue(scene: Scene) -> bool:
    return not scene.router.router.admission.waiting


async def is_connecting(scene: Scene, _reader: Reader) -> None:
    with anyio.fail_after(2):
        while sockets_to(scene.mute_port) == FILLERS:
            await asyncio.sleep(0.001)


async def is_sending(scene: Scene, _reader: Reader) -> None:
    with anyio.fail_after(2):
        while not sockets_to(scene.deaf_port):
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)


STREAM, WHOLE = chat(stream=True), chat(stream=False)
PHASES = {
    "queued": Phase(STREAM, is_queued, left_the_queue, ((0, "abandoned"),), is_full=True),
    "queued, not streaming": Phase(
        WHOLE, is_queued, left_the_queue, ((0, "abandoned"),), is_full=True
    ),
    "connecting": Phase(
        chat("mute", stream=True),
        is_connecting,
        lambda scene: sockets_to(scene.mute_port) == FILLERS,
    ),
    "sending a long request": Phase(
        chat("deaf", stream=True, x="y" * 12_000_000),
        is_sending,
        lambda scene: not sockets_to(scene.deaf_port),
    ),
    "waiting for the head": Phase(STREAM, asked("first"), closed("first"), first="stall"),
    "waiting for the first event": Phase(
        STREAM, asked("first"), closed("first"), first="stall:after=0"
    ),
    "mid-stream": Phase(STREAM, heard(b"data: "), closed("first")),
    "mid-stream, stalled": Phase(STREAM, heard(b"data: "), closed("first"), first="stall:after=1"),
    "waiting for a whole answer": Phase(WHOLE, asked("first"), closed("first"), first="stall"),
    "in the middle of a whole answer": Phase(
        WHOLE, asked("first"), closed("first"), first="stall:after=1"
    ),
    "keep-alive comments": Phase(
        STREAM,
        heard(b": keep-alive"),
        closed("first"),
        first="stall",
        settings={"router_keep_alive_s": 0.01},
    ),
    "in the second attempt": Phase(
        STREAM,
        asked("second"),
        closed("second"),
        ((1, "simulated"), (2, "abandoned")),
        first="status:code=500,shape=openai",
        second="stall",
    ),
    "queued between two attempts": Phase(
        STREAM,
        is_queued,
        left_the_queue,
        ((1, "simulated"), (0, "abandoned")),
        first="status:code=500,shape=openai",
        is_full=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
async def test_whoever_leaves_is_not_served_on(start_router: StartRouter, phase: str) -> None:
    """`pytest -rP` shows the times."""
    assert type(asyncio.get_running_loop()) is uvloop.Loop
    plan = PHASES[phase]
    async with scene_of(start_router, **plan.settings) as scene:
        times = [await one_round(scene, plan) for _ in range(ROUNDS)]
        metrics = (await scene.router.client.get("/metrics")).text
    shown = f"{statistics.median(times) * 1000:.1f} ms, at most {max(times) * 1000:.1f} ms"
    print(f"{phase}: {shown}")  # noqa: T201 - a measurement
    assert statistics.median(times) < AS_A_RULE_S
    assert max(times) < AT_WORST_S
    assert "\niir_in_flight 0.0" in metrics
    assert "\niir_queued 0.0" in metrics


async def one_round(scene: Scene, plan: Phase) -> float:
    """Return how long it took until everything was closed."""
    with filled(scene, plan):
        before = len(await usage_of(scene.router))
        if plan.first:
            scene.first.script.add(plan.first)
        if plan.second:
            scene.second.script.add(plan.second)
        request = render_request("POST", CHAT, plan.body, {"host": "localhost"})
        fleet, admission = scene.router.router.fleet, scene.router.router.admission
        held = admission.taken
        clock = monotonic  # that of uvloop counts whole milliseconds
        async with connected(scene.router.base_url) as (reader, writer):
            writer.write(request)
            await plan.reached(scene, reader)
            left_at = clock()
        with anyio.fail_after(3):
            while not (plan.ended(scene) and not fleet.in_flight()):
                await asyncio.sleep(0.0005)
        took_s = clock() - left_at
        assert (admission.taken, admission.waiting) == (held, 0)
        rows = (await usage_of(scene.router))[before:]
        assert tuple((row["attempt"], row["error"]) for row in rows) == plan.rows
    scene.first.reset()
    scene.second.reset()
    return took_s


@contextmanager
def filled(scene: Scene, plan: Phase) -> Iterator[None]:
    """Take the places of `second`, and of `first` unless the request is to fail there first."""
    if not plan.is_full:
        yield
        return
    names = {"second"} if plan.first else {"first", "second"}
    places = [
        scene.router.router.admission.take([Ranked(candidate, "test")])
        for candidate in scene.router.router.fleet.resolve("tiny").candidates
        if candidate.deployment.endpoint.id in names
    ]
    yield
    for place in places:
        assert place is not None
        place.free(was_served=False)
