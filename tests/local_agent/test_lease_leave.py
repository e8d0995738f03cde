"""The lease of an agent whose host sleeps: given back before, taken again afterwards."""

from __future__ import annotations

import anyio
import httpx

from local_agent.control.lease_core import LeaseStatus
from tests.local_agent.harness import until
from tests.local_agent.test_lease_client import GRANT, QUICK, REGISTER, RELEASE, RENEW, Stage


async def test_an_agent_that_sleeps_gives_the_lease_back_and_registers_when_it_wakes() -> None:
    stage = Stage((200, QUICK))
    async with stage.running():
        await stage.until_calls(3)
        await stage.lease.leave()
        await stage.lease.leave()
        number = len(stage.seen)
        assert stage.calls()[-2:] == [RENEW, RELEASE]
        assert stage.lease.status is LeaseStatus.RELEASED
        stage.subject.change()
        await anyio.sleep(0.03)
        assert len(stage.seen) == number
        stage.lease.rejoin()
        stage.lease.rejoin()
        await stage.until_calls(number + 2)
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
    assert stage.calls()[number : number + 2] == [REGISTER, RENEW]
    numbers = [body["seq"] for *_, body, _ in stage.seen if body is not None]
    assert numbers == sorted(
        set(numbers)
    )  # the router takes nothing that is older than the goodbye


async def test_a_router_that_is_away_keeps_nobody_from_sleep() -> None:
    stage = Stage(httpx.ConnectError("refused"))
    async with stage.running():
        await stage.until_calls(1)
        await stage.lease.leave()
        assert RELEASE not in stage.calls()
        stage.replies = [(200, GRANT)]
        stage.lease.rejoin()
        await until(lambda: stage.lease.status is LeaseStatus.HELD)


async def test_an_agent_that_ends_asleep_does_not_come_back() -> None:
    stage = Stage((200, GRANT))
    async with stage.running():
        await until(lambda: stage.lease.status is LeaseStatus.HELD)
        await stage.lease.leave()
        await stage.lease.release()
        stage.lease.rejoin()
        await anyio.sleep(0.03)
    assert stage.calls() == [REGISTER, RELEASE]
