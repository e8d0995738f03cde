"""The lease client against a scripted router: every answer, and none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from local_agent.control.lease import LeaseClient
from local_agent.control.lease_core import LeaseStatus, Refused, next_wait_s
from shared.contracts.agents import (
    AgentModel,
    AgentState,
    Capacity,
    Power,
    Queue,
    Registration,
)
from shared.kit.clock import monotonic
from tests.local_agent.harness import until

CREDENTIAL = "sk-iir-abcdefgh-very-secret"
AGENT = "/internal/v1/agents/a-1"
GRANT = {"lease_id": "l-1", "ttl_s": 30, "renew_s": 10}
QUICK = {**GRANT, "renew_s": 0.01}


class FakeSubject:
    """An agent whose state a test sets."""

    def __init__(self) -> None:
        self.running = 0
        self.drains = False
        self._changed = anyio.Event()

    def registration(self) -> Registration:
        return Registration(
            incarnation=7,
            name="mac",
            base_url="http://127.0.0.1:5000",
            access_token="t" * 16,
            models=(AgentModel(id="tiny", status="loaded"),),
        )

    def state(self) -> AgentState:
        return "draining" if self.drains else "ready"

    def queue(self) -> Queue:
        return Queue(running=self.running)

    def capacity(self) -> Capacity:
        return Capacity(budget_bytes=100, free_bytes=60, evictable_bytes=20)

    def power(self) -> Power:
        return Power(source="battery", battery_percent=71)

    def reason(self) -> str | None:
        return None

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    def change(self) -> None:
        self._changed.set()


Reply = tuple[int, Any] | Exception | Callable[[], tuple[int, Any]]


class Stage:
    """A lease client, the router that it talks to, and what both did.

    `replies` are used up in order; the last one stays.
    """

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.seen: list[tuple[str, str, Any, str]] = []
        self.waits: list[float] = []
        self._slept_s = 0.0
        self.now: Callable[[], float] = monotonic
        self.statuses: set[LeaseStatus] = set()
        self.credential: str | None = CREDENTIAL
        self.on_wait: Callable[[], None] = lambda: None
        self.subject = FakeSubject()
        self.http = httpx.AsyncClient(
            transport=httpx.MockTransport(self._answer), base_url="http://router"
        )
        self.lease = LeaseClient(
            client=self.http,
            agent_id="a-1",
            credential=lambda: self.credential,
            subject=self.subject,
            rng=Random(1),
            clock=lambda: self.now() + self._slept_s,
            sleep=self._sleep,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.http, anyio.create_task_group() as tasks:
            tasks.start_soon(self.lease.run)
            yield
            tasks.cancel_scope.cancel()

    def calls(self) -> list[tuple[str, str]]:
        return [(method, path.removeprefix(AGENT)) for method, path, _, _ in self.seen]

    async def until_calls(self, number: int) -> None:
        await until(lambda: len(self.seen) >= number)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        authorization = request.headers["authorization"]
        self.seen.append((request.method, request.url.path, body, authorization))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        status, answer = reply() if callable(reply) else reply
        if isinstance(answer, bytes):
            return httpx.Response(status, content=answer)
        return httpx.Response(status, json=answer)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._slept_s += seconds
        self.statuses.add(self.lease.status)
        self.on_wait()
        await anyio.sleep(0.001)


REGISTER, RENEW, RELEASE = ("PUT", ""), ("PUT", "/lease"), ("DELETE", "/lease")


@pytest.mark.parametrize("status", [401, 403])
def test_a_credential_is_waited_for_a_minute(status: int) -> None:
    assert next_wait_s(Refused(status), 9, Random(1)) == 60


@given(status=st.sampled_from([0, 400, 404, 500, 503]), failures=st.integers(1, 10**6))
def test_an_absent_router_is_asked_again_within_seconds(status: int, failures: int) -> None:
    wait_s = next_wait_s(Refused(status), failures, Random(failures))
    assert 0.4 <= wait_s <= 6
    assert failures > 1 or wait_s <= 0.6


async def test_it_registers_and_renews_with_growing_numbers() -> None:
    stage = Stage((200, QUICK))
    stage.subject.running = 3
    async with stage.running():
        await stage.until_calls(4)
        assert stage.lease.status is LeaseStatus.HELD
    assert stage.calls()[:4] == [REGISTER, RENEW, RENEW, RENEW]
    assert {authorization for *_, authorization in stage.seen} == {f"Bearer {CREDENTIAL}"}
    _, _, registration, _ = stage.seen[0]
    assert registration["protocol"] == 1
    assert registration["incarnation"] == 7
    assert registration["models"][0]["id"] == "tiny"
    assert registration["state"] == "ready"
    queue = {"running": 3, "waiting": 0, "max_waiting": None, "expected_wait_s": 0.0}
    assert registration["queue"] == queue
    beats = [body for _, _, body, _ in stage.seen[1:4]]
    assert [beat["seq"] for beat in [registration, *beats]] == [1, 2, 3, 4]
    assert {beat["lease_id"] for beat in beats} == {"l-1"}
    assert beats[0]["queue"] == queue
    assert beats[0]["state"] == "ready"
    assert beats[0]["models"][0]["status"] == "loaded"
    assert stage.waits == []


async def test_a_change_is_told_at_once() -> None:
    stage = Stage((200, GRANT))
    async with stage.running():
        await stage.until_calls(1)
        await anyio.sleep(0.02)
        assert stage.calls() == [REGISTER]
        stage.subject.drains = True
        stage.subject.change()
        await stage.until_calls(2)
    assert stage.seen[1][2]["state"] == "draining"


@pytest.mark.parametrize("status", [404, 410])
async def test_a_lost_lease_is_registered_at_once(status: int) -> None:
    other = {**GRANT, "lease_id": "l-2"}
    stage = Stage((200, QUICK), (status, {}), (200, other))
    async with stage.running():
        await stage.until_calls(3)
        stage.subject.change()
        await stage.until_calls(4)
    assert stage.calls() == [REGISTER, RENEW, REGISTER, RENEW]
    assert stage.seen[3][2]["lease_id"] == "l-2"
    assert stage.waits == []


async def test_a_router_without_the_route_is_not_asked_in_a_hurry() -> None:
    stage = Stage((404, {}))
    async with stage.running():
        await stage.until_calls(6)
    assert stage.lease.status is LeaseStatus.ROUTER_AWAY
    planned = 0.5 + 1 + 2 + 4 + 5  # and up to two more, before this test looks
    assert 0.8 * planned < sum(stage.waits) < 1.2 * (planned + 5 + 5)


async def test_a_newer_start_of_this_agent_takes_over() -> None:
    scripts: list[list[Reply]] = [[(409, {})], [(200, QUICK), (409, {})]]
    for replies in scripts:
        stage = Stage(*replies)
        async with stage.http:
            with anyio.fail_after(2):
                await stage.lease.run()
        assert stage.lease.status is LeaseStatus.SUPERSEDED
        assert len(stage.seen) == len(replies)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_is_tried_again_after_a_minute(status: int) -> None:
    stage = Stage((status, {"error": {"code": "invalid_api_key"}}), (200, GRANT))
    stage.now = lambda: 0.0  # only its sleeps take time
    async with stage.running():
        await stage.until_calls(1)
        await until(lambda: stage.waits)
        assert stage.lease.status is LeaseStatus.REFUSED
        await stage.until_calls(2)
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
    assert sum(stage.waits) == 60


async def test_a_replaced_credential_is_used_at_once() -> None:
    stage = Stage((401, {}), (200, GRANT))

    def replace() -> None:
        if len(stage.waits) == 3:
            stage.credential = "sk-iir-new"

    stage.on_wait = replace
    async with stage.running():
        await stage.until_calls(2)
    assert len(stage.waits) == 3
    assert stage.seen[1][3] == "Bearer sk-iir-new"


async def test_a_refused_heartbeat_keeps_the_lease() -> None:
    stage = Stage((200, QUICK), (401, {}), (200, GRANT))
    async with stage.running():
        await stage.until_calls(3)
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
    assert stage.calls() == [REGISTER, RENEW, RENEW]


async def test_without_a_credential_nothing_is_asked_until_there_is_one() -> None:
    stage = Stage((200, GRANT))
    stage.credential = None

    def make() -> None:
        assert stage.lease.status is LeaseStatus.NO_CREDENTIAL
        assert stage.seen == []
        if len(stage.waits) == 40:
            stage.credential = CREDENTIAL

    stage.on_wait = make
    async with stage.running():
        await stage.until_calls(1)
    assert len(stage.waits) == 40
    assert max(stage.waits) == 2


async def test_a_credential_that_goes_away_ends_the_heartbeats() -> None:
    stage = Stage((200, QUICK))
    async with stage.running():
        await stage.until_calls(2)
        stage.credential = None
        await until(lambda: stage.lease.status is LeaseStatus.NO_CREDENTIAL)
        number = len(stage.seen)
        await until(lambda: len(stage.waits) > 3)
        assert len(stage.seen) == number


@pytest.mark.parametrize(
    "reply",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("garbage"),
        (500, {}),
        (503, b"<html>"),
        (429, {}),
        (302, {}),
        (200, b"not json"),
        (200, {}),
        (200, {**GRANT, "renew_s": 0}),
        (200, {**GRANT, "ttl_s": -1}),
        (204, b""),
    ],
)
async def test_an_absent_or_odd_router_is_outlived(reply: Reply) -> None:
    stage = Stage((200, QUICK), reply, reply, reply, (200, GRANT))
    async with stage.running():
        await stage.until_calls(5)
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
    assert stage.calls() == [REGISTER, RENEW, RENEW, RENEW, RENEW]
    assert stage.statuses == {LeaseStatus.ROUTER_AWAY}
    assert 0.8 * 3.5 < sum(stage.waits) < 1.2 * 3.5


@pytest.mark.parametrize("status", [400, 405, 422])
async def test_an_agent_that_the_router_can_t_take_says_so(status: int) -> None:
    stage = Stage((status, {"error": {"code": "agent_address_refused"}}))
    with capture_logs() as logs:
        async with stage.running():
            await stage.until_calls(3)
    assert stage.lease.status is LeaseStatus.REFUSED
    assert logs == [
        {
            "event": "lease",
            "log_level": "warning",
            "status": "refused",
            "answer": status,
            "code": "agent_address_refused",
        }
    ]


async def test_release_gives_the_lease_back_and_sends_nothing_after_it() -> None:
    stage = Stage((200, QUICK))
    async with stage.http, anyio.create_task_group() as tasks:
        tasks.start_soon(stage.lease.run)
        await stage.until_calls(3)
        await stage.lease.release()
        number = len(stage.seen)
        assert stage.calls()[-1] == RELEASE
        stage.subject.change()
        await anyio.sleep(0.03)
        assert len(stage.seen) == number
        assert stage.lease.status is LeaseStatus.RELEASED
    await stage.lease.run()  # a restart of the loop does not undo it
    assert len(stage.seen) == number


async def test_release_before_the_lease_asks_nobody() -> None:
    stage = Stage(httpx.ConnectError("refused"))
    async with stage.running():
        await stage.until_calls(1)
        await stage.lease.release()
        assert RELEASE not in stage.calls()
        assert stage.lease.status is LeaseStatus.RELEASED


async def test_release_before_the_start_keeps_it_from_starting() -> None:
    stage = Stage((200, GRANT))
    async with stage.http:
        await stage.lease.release()
        await stage.lease.run()
    assert stage.seen == []
    assert stage.lease.status is LeaseStatus.RELEASED


async def test_release_from_a_router_that_is_gone_is_no_error() -> None:
    stage = Stage((200, GRANT), httpx.ConnectError("refused"))
    async with stage.running():
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
        await stage.lease.release()
    assert stage.calls() == [REGISTER, RELEASE]


async def test_no_log_line_holds_the_credential() -> None:
    echo = json.dumps({"error": {"code": CREDENTIAL, "message": CREDENTIAL}}).encode()
    replies: list[Reply] = [(200, QUICK), httpx.ConnectError(CREDENTIAL), (200, QUICK), (403, echo)]
    with capture_logs() as logs:
        stage = Stage(*replies)
        async with stage.running():
            await stage.until_calls(6)
            await stage.lease.release()
    assert [log["status"] for log in logs] == ["held", "router_away", "held", "refused", "released"]
    assert CREDENTIAL not in repr(logs)
