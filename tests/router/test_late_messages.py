"""Messages of agents that come late, twice or while the registry is slow: nothing goes backwards."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from router.fleet.leases import LeaseDesk
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from shared.contracts.agents import LeaseGrant, Registration
from shared.http.errors import Conflict
from tests.router.agents import Scene, scene_of
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of
from tests.router.test_fleet_membership import FakeClock, beat
from tests.router.test_fleet_membership import registration as registration_of


async def is_served(scene: Scene) -> bool:
    return (await scene.client.post(CHAT, json=chat())).status_code == 200


async def goodbye(scene: Scene, **said: int) -> tuple[int, str | None]:
    path = f"{scene.agent.path}/lease"
    answer = await scene.client.delete(path, params=said, headers=bearer(scene.agent.credential))
    return answer.status_code, error_of(answer)["code"] if answer.content else None


async def test_a_registration_that_comes_late_does_not_revive_an_agent_that_drains(
    start_router: StartRouter,
) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register(seq=1)
        assert await is_served(scene)
        await scene.agent.renew(seq=2, state="draining")
        late = await scene.agent.register(seq=1)
        assert (late.status_code, error_of(late)["code"]) == (404, "not_found")
        assert not await is_served(scene)
        # one that drains and lost its lease goes on draining
        assert (await scene.agent.register(seq=3, state="draining")).status_code == 200
        assert not await is_served(scene)
        assert (await scene.agent.renew(seq=4)).status_code == 200
        assert await is_served(scene)


async def test_a_goodbye_ends_its_own_lease_only(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        incarnation = scene.agent.incarnation
        await scene.agent.register(seq=5)
        assert await goodbye(scene, incarnation=incarnation - 1, seq=9) == (409, "conflict")
        assert await goodbye(scene, incarnation=incarnation, seq=4) == (404, "not_found")
        assert await is_served(scene)
        assert await goodbye(scene, incarnation=incarnation, seq=7) == (204, None)
        assert (await scene.agent.register(seq=6)).status_code == 404
        assert not await is_served(scene)
        assert (await scene.agent.register(seq=8)).status_code == 200
        assert await is_served(scene)


class SlowStore:
    """A lease store that can't be written, and takes its time to say so."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.may_go_on = anyio.Event()
        self.is_full = True
        self.registered: list[tuple[int, str]] = []
        self.beats: list[int] = []

    async def save_registration(
        self, row_id: int, agent_id: str, registration: Registration, lease_id: str
    ) -> None:
        if registration.incarnation == 1:
            self.asked.set()
            await self.may_go_on.wait()
        self._check()
        self.registered.append((registration.incarnation, lease_id))

    async def save_heartbeats(self, beats: Any) -> None:
        self._check()
        self.beats += [heartbeat.seq for _, _, heartbeat in beats]

    async def release(self, row_id: int) -> None:
        self._check()

    def _check(self) -> None:
        if self.is_full:
            raise OSError("full")


def desk_of(store: SlowStore) -> tuple[LeaseDesk, Fleet]:
    fleet = Fleet(Membership(FakeClock(), 30.0), lambda _: None)
    return LeaseDesk(fleet, store, ttl_s=30, renew_s=10, allowed_addresses=frozenset()), fleet


async def test_an_older_start_that_the_registry_held_up_does_not_push_the_newer_one_out() -> None:
    store = SlowStore()
    desk, fleet = desk_of(store)

    async def register_the_older_one() -> None:
        with pytest.raises(Conflict):
            await desk.register(1, "mac", "a", registration_of(1), "127.0.0.1")

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register_the_older_one)
            await store.asked.wait()
            await desk.register(1, "mac", "a", registration_of(2), "127.0.0.1")
            store.may_go_on.set()
    [member] = fleet.membership
    assert member.registration.incarnation == 2


async def test_a_registration_that_could_not_be_written_is_written_later() -> None:
    store = SlowStore()
    desk, _ = desk_of(store)
    grant: LeaseGrant = await desk.register(1, "mac", "a", registration_of(2), "127.0.0.1")
    desk.renew(1, "a", beat(4, grant.lease_id).model_copy(update={"incarnation": 2}))
    with pytest.raises(OSError, match="full"):
        await desk.flush()
    store.is_full = False
    await desk.flush()
    await desk.flush()
    assert store.registered == [(2, grant.lease_id)]
    assert store.beats == [4]
