"""Joining over HTTP: token to credential, rotation, who is refused, and what is never said."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.errors import TooManyJoins
from router.fleet.joining import Allowance
from router.store import agents, joining
from router.store.joining import invite
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import bearer, error_of
from tests.router.test_fleet_membership import FakeClock

BASE = "/internal/v1/agents"


def token_of(router: RunningRouter, name: str | None = None, lasts_s: float = 60) -> str:
    token: str = router.write(lambda c: invite(c, name, lasts_s))[0]
    return token


async def join(
    router: RunningRouter, token: str, name: str = "mac", credential: str | None = None
) -> httpx.Response:
    headers = {} if credential is None else bearer(credential)
    body = {"token": token, "name": name}
    return await router.client.post(f"{BASE}/join", json=body, headers=headers, timeout=30)


async def confirm(router: RunningRouter, credential: str) -> int:
    answer = await router.client.post(f"{BASE}/confirm", json={}, headers=bearer(credential))
    return answer.status_code


async def test_a_token_is_exchanged_once_for_a_credential_that_works_at_once(
    start_router: StartRouter,
) -> None:
    async with start_router() as router:
        token = token_of(router)
        answer = await join(router, token)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["name"] == "mac"
        assert await confirm(router, answer.json()["credential"]) == 200
        again = await join(router, token, "mac-2")
        assert (again.status_code, error_of(again)["code"]) == (401, "join_token_refused")
        assert "used already" in error_of(again)["message"]
        assert (await router.client.get("/v1/models")).status_code == 200, "still in open mode"


async def test_of_two_at_once_one_gets_it(start_router: StartRouter) -> None:
    async with start_router() as router:
        token = token_of(router)
        answers = await asyncio.gather(*(join(router, token, f"mac-{n}") for n in range(6)))
        assert sorted(a.status_code for a in answers) == [200] + [401] * 5


async def test_what_is_refused_repeats_nothing(start_router: StartRouter) -> None:
    async with start_router() as router:
        expired = router.write(lambda c: invite(c, None, 5, now=lambda: 1000.0))[0]
        forged = expired[:-1] + ("a" if expired[-1] != "a" else "b")
        for token, code in ((expired, 401), (forged, 401), ("x" * 300, 400), ("", 400)):
            answer = await join(router, token)
            assert answer.status_code == code
            assert token[-20:] == "" or token[-20:] not in answer.text
        assert (await join(router, token_of(router), "no name")).status_code == 400
        router.write(lambda c: agents.add_agent(c, "mac"))
        assert (await join(router, token_of(router))).status_code == 409


async def test_rotation_ends_the_old_credential_when_the_new_one_was_used(
    start_router: StartRouter,
) -> None:
    async with start_router() as router:
        old = (await join(router, token_of(router))).json()["credential"]
        for _ in range(2):  # the first answer is lost
            answer = await router.client.post(f"{BASE}/rotate", headers=bearer(old))
            assert answer.status_code == 200
        new = answer.json()["credential"]
        assert await confirm(router, old) == 200
        assert await confirm(router, new) == 200
        assert await confirm(router, old) == 401
        assert await confirm(router, new) == 200
        [info] = router.write(agents.list_agents)
        assert info.key_prefix in new


async def test_an_agent_that_joins_again_keeps_its_row(start_router: StartRouter) -> None:
    async with start_router() as router:
        old = (await join(router, token_of(router))).json()["credential"]
        new = (await join(router, token_of(router), "renamed", old)).json()
        assert new["name"] == "mac"
        assert await confirm(router, new["credential"]) == 200
        assert await confirm(router, old) == 401
        assert (await join(router, token_of(router), "other", "sk-iir-unknown")).json()[
            "name"
        ] == "other"


@pytest.mark.slow
async def test_a_locked_registry_uses_no_token_up(
    start_router: StartRouter, tmp_path: Path
) -> None:
    async with start_router() as router:
        token = token_of(router)
        path = router.settings.store_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await asyncio.wait_for(join(router, token), 30)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            other.rollback()
        assert (await join(router, token)).status_code == 200


async def test_who_tries_too_often_waits(start_router: StartRouter) -> None:
    async with start_router() as router:
        answers: list[Any] = [await join(router, "x") for _ in range(11)]
        assert [a.status_code for a in answers] == [401] * 10 + [429]
        assert error_of(answers[-1])["code"] == "too_many_joins"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 6


def test_an_allowance_comes_back_with_time_and_per_site() -> None:
    clock = FakeClock()
    allowance = Allowance(clock, burst=2, refill_s=6, most=3)
    for address in ("2001:db8::1", "2001:db8::2"):
        allowance.take(address)
    with pytest.raises(TooManyJoins):
        allowance.take("2001:db8::3")
    allowance.take("2001:db8:0:1::1")
    for address in ("192.0.2.1", "::ffff:192.0.2.1"):
        allowance.take(address)
    with pytest.raises(TooManyJoins):
        allowance.take("192.0.2.1")
    clock.now += 6
    allowance.take("192.0.2.1")
    with pytest.raises(TooManyJoins):
        allowance.take("192.0.2.1")
    for number in range(50):
        allowance.take(f"192.0.2.{number + 2}")
    assert len(allowance._full_at) == 3


async def test_revoked_while_it_rotates(start_router: StartRouter) -> None:
    async with start_router(router_catalog_poll_s=100) as router:
        old = (await join(router, token_of(router))).json()["credential"]
        router.write(lambda c: agents.revoke_agent(c, "mac"))
        answer = await router.client.post(f"{BASE}/rotate", headers=bearer(old))
        assert answer.status_code == 403
        assert router.write(lambda c: joining.withdraw(c, "mac")) == 0
