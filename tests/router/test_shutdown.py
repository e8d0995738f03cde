"""How a router ends: told to, told twice, and killed. What is running is drained, ended, or lost."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import httpx
import pytest

from shared.testing.raw_client import connected, render_request
from shared.testing.wire import Exchange
from tests.router.process import RouterProcess
from tests.router.scenes import CHAT, chat, error_event_of, error_of
from tests.router.upstreams import EVENT, SSE, SSE_HEAD, Answering, for_ever, scene

# a machine of its own: it holds times that other tests beside it would spoil
pytestmark = pytest.mark.integration

if sys.platform == "linux":
    import resource

DONE = b"data: [DONE]\n\n"


def brief(events: int, pause_s: float = 0.1) -> Answering:
    """Return what sends so many events, and the end."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send_head(200, SSE, length=None)
        for _ in range(events):
            await exchange.send_body(EVENT)
            await asyncio.sleep(pause_s)
        await exchange.send_body(DONE)
        await exchange.end_body()

    return answering


@asynccontextmanager
async def streaming(router: RouterProcess) -> AsyncIterator[asyncio.Task[bytes]]:
    """Begin a stream, and return the task that reads its body."""

    async def read(answer: httpx.Response) -> bytes:
        return b"".join([piece async for piece in answer.aiter_raw()])

    body = chat(x="x", stream=True)
    async with router.client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        yield asyncio.create_task(read(answer))


def rows(router: RouterProcess) -> list[tuple[str, str | None]]:
    """Return request id and error of each row, after checking that the file is intact."""
    path = router.settings.store_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT request_id, error FROM usage ORDER BY id").fetchall()


async def until_written(router: RouterProcess, count: int, timeout_s: float = 5.0) -> None:
    with anyio.fail_after(timeout_s):
        while len(rows(router)) < count:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_running_streams_are_finished(tmp_path: Path, kind: signal.Signals) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="5") as (router, upstream):
        upstream.cases["x"] = brief(10)
        async with streaming(router) as stream, connected(router.base_url) as (_, idle):
            idle.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.sleep(0.1)
            router.process.send_signal(kind)
            body = await stream
        assert body == EVENT * 10 + DONE
        assert await router.exit_code(3) == 0
        assert [error for _, error in rows(router)] == [None]
        assert "Traceback" not in router.log()


async def test_nobody_new_is_served_while_it_drains(tmp_path: Path) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="5") as (router, upstream):
        upstream.cases["x"] = brief(10)
        async with streaming(router) as stream:
            router.process.terminate()
            await asyncio.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", router.port)
            assert (await stream).endswith(DONE)
        assert await router.exit_code(3) == 0


async def test_what_takes_too_long_ends_with_an_error(tmp_path: Path) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="1") as (router, upstream):
        upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, EVENT, 0.05)
        upstream.cases["silent"] = for_ever(b"", b"", 0.05)
        async with streaming(router) as stream:
            waiting = asyncio.create_task(router.client.post(CHAT, json=chat(x="silent")))
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            router.process.terminate()
            body = await stream
            answer = await waiting
            assert await router.exit_code(5) == 0
        assert 0.9 < time.perf_counter() - started < 4
        assert error_event_of(body)["code"] == "shutting_down"
        assert (answer.status_code, error_of(answer)["code"]) == (503, "shutting_down")
        assert len(rows(router)) == 2
        assert "Traceback" not in router.log()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(tmp_path: Path, kind: signal.Signals) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="60") as (router, upstream):
        upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, EVENT, 0.05)
        async with streaming(router) as stream:
            router.process.terminate()
            await asyncio.sleep(0.3)
            assert router.process.poll() is None
            started = time.perf_counter()
            router.process.send_signal(kind)
            assert await router.exit_code(4) == 0
            assert time.perf_counter() - started < 2.5
            assert error_event_of(await stream)["code"] == "shutting_down"
        assert "Traceback" not in router.log()


async def test_connections_without_a_request_hold_nothing_up(tmp_path: Path) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="60") as (router, _):
        halves = (b"", b"POST /v1/chat/comp", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with (
            connected(router.base_url) as a,
            connected(router.base_url) as b,
            connected(router.base_url) as c,
        ):
            for (_, writer), data in zip((a, b, c), halves, strict=True):
                writer.write(data)
            await asyncio.sleep(0.2)
            router.process.terminate()
            assert await router.exit_code(3) == 0


async def test_clients_that_do_not_read_or_send_on_hold_it_up_to_the_limit(tmp_path: Path) -> None:
    async with scene(tmp_path, ROUTER_DRAIN_S="1") as (router, upstream):
        upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, EVENT * 600, 0.001)
        request = render_request("POST", CHAT, chat(x="x", stream=True), {"host": "localhost"})
        half = render_request("POST", CHAT, b"{", {"host": "localhost", "content-length": "100"})
        async with connected(router.base_url) as (reader, writer), connected(router.base_url) as b:
            writer.write(request)
            b[1].write(half)
            await reader.readuntil(EVENT)
            writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
            await asyncio.sleep(1.0)
            router.process.terminate()
            assert await router.exit_code(6) == 0
        assert "Traceback" not in router.log()


async def test_kill_loses_no_row_that_is_older_than_a_batch(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, upstream):
        upstream.cases["x"] = brief(2, 0.01)
        finished: dict[str, float] = {}

        async def load() -> None:
            for n in range(100_000):
                body = chat(x="x", stream=True) if n % 2 else chat()
                answer = await router.client.post(CHAT, json=body)
                finished[answer.headers["x-request-id"]] = time.perf_counter()

        tasks = [asyncio.create_task(load()) for _ in range(8)]
        await asyncio.sleep(3)
        killed = time.perf_counter()
        router.process.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        await router.exit_code()
        found = [request_id for request_id, _ in rows(router)]
        assert len(found) == len(set(found))
        old = {request_id for request_id, ended in finished.items() if ended < killed - 1.0}
        assert len(old) > 100
        assert old <= set(found)


async def test_a_locked_registry_holds_no_request_up(tmp_path: Path) -> None:
    limits = {"ledger_rows": 50}
    async with scene(tmp_path, limits=limits) as (router, _):
        path = router.settings.store_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            dropped = await overflow(router)
            other.execute("ROLLBACK")
        await until_written(router, 50, 15)
        assert await ledger_of(router) == (dropped, 0)


async def test_a_router_ends_while_its_registry_is_locked(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, _):
        path = router.settings.store_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for _ in range(5):
                await router.client.post(CHAT, json=chat())
            router.process.terminate()
            assert await router.exit_code(15) == 0
            other.execute("ROLLBACK")
        assert "Traceback" not in router.log()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
async def test_a_full_disk_holds_no_request_up(tmp_path: Path) -> None:
    limits = {"ledger_rows": 50}
    async with scene(tmp_path, limits=limits) as (router, _):
        await router.client.post(CHAT, json=chat())
        await until_written(router, 1)
        # no file may grow: what a full disk is to a process that writes no new ones
        before = resource.prlimit(
            router.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)
        )
        dropped = await overflow(router)
        resource.prlimit(router.process.pid, resource.RLIMIT_FSIZE, before)
        await until_written(router, 51, 15)
        assert await ledger_of(router) == (dropped, 0)


async def overflow(router: RouterProcess) -> int:
    """Ask for more than a ledger of 50 rows can hold, and return how many rows it dropped."""
    async with router.meanwhile(chat()):
        for _ in range(80):
            await router.client.post(CHAT, json=chat())
        await asyncio.sleep(0.7)
    dropped, waiting = await ledger_of(router)
    assert waiting == 50
    assert dropped >= 30
    return dropped


async def ledger_of(router: RouterProcess) -> tuple[int, int]:
    """Return how many rows were dropped, and how many wait, as the metrics say."""
    shown = (await router.client.get("/metrics")).text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in shown if line.startswith("iir_ledger_"))
    return int(float(found["iir_ledger_dropped_total"])), int(float(found["iir_ledger_waiting"]))
