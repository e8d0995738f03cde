"""Router and agent together: what works, and that all heals by itself whoever was away."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from local_agent.control.lease_core import LeaseStatus
from local_agent.domain import WorkerState
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.e2e.harness import Site, statuses
from tests.local_agent.harness import CHAT, MESSAGES, external, until
from tests.loopback_sdks import openai_at
from tests.router.harness import RunningRouter

BODY = {"model": "tiny", "messages": MESSAGES}
SIMULATED = {"id": "sim", "engine": "simulated", "preload": True}
NEVER = {"router_lease_renew_s": 100, "router_lease_ttl_s": 300}
NOT_PULLED = {"id": "big", "engine": "llama_cpp", "source": "hf:org/repo:big.gguf"}


async def ask(router: RunningRouter, **more: object) -> httpx.Response:
    return await router.client.post(CHAT, json={**BODY, **more})


async def until_served(router: RunningRouter, **more: object) -> httpx.Response:
    with anyio.fail_after(15):
        while (answer := await ask(router, **more)).status_code != 200:
            await anyio.sleep(0.02)
    return answer


async def test_a_request_passes_both_and_comes_back_unchanged(site: Site) -> None:
    async with site.router() as router, site.agent() as agent:
        await agent.until_lease(LeaseStatus.HELD)
        headers = {"x-request-id": "one-id-for-all"}
        direct = await agent.client.post(
            agent.worker_url + CHAT, json={**BODY, "model": "engine/tiny"}, headers=headers
        )
        through = await router.client.post(CHAT, json={**BODY, "model": "default"}, headers=headers)
        assert through.status_code == 200
        assert through.content == direct.content
        assert agent.sent.header("x-request-id") == "one-id-for-all"
        assert agent.sent.header("authorization") is None
        assert through.headers["x-iir-zone"] == "local"
        assert through.headers["x-iir-model"] == "tiny"
        ready = (await agent.client.get("/readyz")).json()
        assert ready == {"status": "ready", "lease": "held", "config": "ok"}


async def test_the_sdk_streams_through_both(site: Site) -> None:
    messages: Any = MESSAGES
    async with (
        site.router() as router,
        site.agent() as agent,
        openai_at(router.base_url) as sdk,
    ):
        await agent.until_lease(LeaseStatus.HELD)
        stream = await sdk.chat.completions.create(model="tiny", messages=messages, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text.endswith("hello small world")
        assert len((await sdk.embeddings.create(model="tiny", input=["a", "b"])).data) == 2


async def test_a_client_that_leaves_the_router_frees_the_engine(site: Site) -> None:
    slow = EngineOptions(models=("engine/tiny",), latency=Latency(itl_s=0.02), tokens=2000)
    async with site.router() as router, site.agent(engine=slow) as agent:
        await agent.until_lease(LeaseStatus.HELD)
        await agent.left_by(router.client, {**BODY, "stream": True}, has_begun=True)
        await agent.engine.journal.wait_for(lambda: agent.sent.aborted)
        await agent.until_idle()
        assert agent.engine.slots.running == 0
        await until(lambda: router.router.fleet.in_flight() == 0)
        chats = [at for at in agent.engine.requests if at.path.endswith("/completions")]
        assert len(chats) == 1, "asked again for a client that is gone"


async def test_the_router_lists_what_the_agent_has_and_hears_of_changes_at_once(
    site: Site,
) -> None:
    async with site.router(**NEVER) as router, site.agent(SIMULATED, NOT_PULLED) as agent:
        await agent.until("sim", WorkerState.READY)
        with anyio.fail_after(5):
            while await statuses(router) != {"sim": "loaded", "big": "unloaded"}:
                await anyio.sleep(0.02)
        answer = await ask(router, model="big")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_pulled")
        assert "iir-agent pull big" in answer.json()["error"]["message"]
        agent.kill("sim")
        with anyio.fail_after(5):
            while (await statuses(router))["sim"] == "loaded":
                await anyio.sleep(0.01)
        agent.rewrite(SIMULATED, {**SIMULATED, "id": "second"})
        await agent.client.post("/internal/reload", json={})
        await until_served(router, model="second")


async def test_a_killed_worker_is_503_with_a_time_until_it_is_back(site: Site) -> None:
    async with site.router() as router, site.agent(SIMULATED, first_s=0.5) as agent:
        await agent.until("sim", WorkerState.READY)
        await until_served(router, model="sim")
        agent.kill("sim")
        await agent.until("sim", WorkerState.BACKOFF)
        answer = await ask(router, model="sim")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        await until_served(router, model="sim")


async def test_a_router_asks_no_agent_that_sleeps_and_takes_it_back_at_once(site: Site) -> None:
    async with site.router(**NEVER) as router, site.agent() as agent:
        await agent.until_lease(LeaseStatus.HELD)
        await until_served(router)
        care = agent.agent._power
        await care.before_sleep(30.0)
        answer = await ask(router)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "agent_unavailable")
        assert [seen.path for seen in agent.engine.requests].count(CHAT) == 1
        await care.after_sleep()
        await until_served(router)


async def test_a_stopped_agent_is_gone_at_once_and_welcome_back(site: Site) -> None:
    async with site.router(**NEVER) as router:
        for _ in range(2):
            async with site.agent() as agent:
                await agent.until_lease(LeaseStatus.HELD)
                assert (await ask(router)).status_code == 200
            answer = await ask(router)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "agent_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
            assert (await router.client.get("/readyz")).status_code == 200


async def test_an_agent_that_drains_gets_nothing_new(site: Site) -> None:
    async with site.router(**NEVER) as router, site.agent() as agent:
        await agent.until_lease(LeaseStatus.HELD)
        assert (await ask(router)).status_code == 200
        agent.agent.drain()
        codes = set()
        with anyio.fail_after(5):
            while "agent_unavailable" not in codes:
                codes.add((await ask(router)).json().get("error", {}).get("code"))
                await anyio.sleep(0.02)
        # until its router hears of it, the agent says itself that it takes no more
        assert codes <= {None, "unavailable", "agent_unavailable"}
        assert (await ask(router)).json()["error"]["code"] == "agent_unavailable"


async def test_a_router_that_starts_again_serves_at_once_and_the_agent_stays(site: Site) -> None:
    async with site.agent() as agent:
        async with site.router() as router:
            await agent.until_lease(LeaseStatus.HELD)
            assert (await ask(router)).status_code == 200
        await agent.until_lease(LeaseStatus.ROUTER_AWAY)
        own = await agent.client.post(CHAT, json=BODY)
        assert own.status_code == 200  # local clients need no router
        async with site.router() as router:
            assert (await ask(router)).status_code == 200
            await agent.until_lease(LeaseStatus.HELD)
            assert (await ask(router)).status_code == 200


async def test_an_agent_that_was_first_finds_its_router_later(site: Site) -> None:
    async with site.agent() as agent:
        await agent.until_lease(LeaseStatus.ROUTER_AWAY)
        ready = await agent.client.get("/readyz")
        away = {"lease": "router_away", "lease_problem": "no_connection"}
        body = {"status": "ready", "config": "ok", **away}
        assert (ready.status_code, ready.json()) == (200, body)
        async with site.router() as router:
            await until_served(router)
            assert agent.agent.lease.status is LeaseStatus.HELD


@pytest.mark.slow
async def test_an_agent_that_vanished_is_noticed_and_healed(site: Site) -> None:
    """As after `kill -9`: no goodbye, and another one with the same identity."""
    async with site.router() as router:
        async with site.agent() as agent:
            await agent.until_lease(LeaseStatus.HELD)
            agent.agent.lease._scope.cancel()  # type: ignore[union-attr] # it runs
            agent.agent.lease._core.status = LeaseStatus.ROUTER_AWAY
        answer = await ask(router)
        assert answer.status_code in {502, 503}
        await anyio.sleep(1.3)  # two times the lease's duration
        answer = await ask(router)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "agent_unavailable")
        async with site.agent() as agent:
            await until_served(router)


@pytest.mark.slow
async def test_a_lost_registry_needs_a_new_credential_and_no_restart(site: Site) -> None:
    async with site.agent() as agent:
        async with site.router():
            await agent.until_lease(LeaseStatus.HELD)
        for path in site.router_home.glob("models.db*"):
            path.unlink()
        async with site.router() as router:
            await agent.until_lease(LeaseStatus.REFUSED)
            ready = (await agent.client.get("/readyz")).json()
            assert (ready["lease"], ready["lease_problem"]) == ("refused", "invalid_api_key")
            site.give_credential()
            await agent.until_lease(LeaseStatus.HELD)
            await until_served(router)


@pytest.mark.slow
async def test_a_credential_that_is_made_later_is_found(site: Site) -> None:
    credential = site.credential_path.read_text()
    site.credential_path.unlink()
    async with site.router() as router, site.agent() as agent:
        await agent.until_lease(LeaseStatus.NO_CREDENTIAL)
        assert (await agent.client.get("/readyz")).json()["lease"] == "no_credential"
        site.credential_path.write_text(credential)
        await until_served(router)


async def test_the_newest_start_of_an_agent_wins(site: Site) -> None:
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(site.router())
        first = await stack.enter_async_context(site.agent())
        await first.until_lease(LeaseStatus.HELD)
        second = await stack.enter_async_context(site.agent())
        await second.until_lease(LeaseStatus.HELD)
        await first.until_lease(LeaseStatus.SUPERSEDED)
        assert (await first.client.get("/readyz")).json()["lease"] == "superseded"
        assert (await ask(router)).status_code == 200
        assert [seen for seen in first.engine.requests if seen.method == "POST"] == []


async def test_an_address_that_is_not_the_agent_s_own_is_refused(site: Site) -> None:
    async with site.router(), site.agent(agent_url="http://169.254.169.254:80") as agent:
        await agent.until_lease(LeaseStatus.REFUSED)
        ready = (await agent.client.get("/readyz")).json()
        assert (ready["lease"], ready["lease_problem"]) == ("refused", "agent_address_refused")


@pytest.mark.parametrize("fault", ["cut:after=2", "no_done:after=2"])
async def test_a_stream_that_breaks_in_the_engine_ends_in_one_error_event(
    site: Site, fault: str
) -> None:
    async with site.router() as router, site.agent() as agent:
        await agent.until_lease(LeaseStatus.HELD)
        agent.engine.script.add(fault)
        answer = await ask(router, stream=True)
        assert answer.status_code == 200
        events = answer.text.strip().split("\n\n")
        assert '"upstream_interrupted"' in events[-1]
        assert answer.text.count('"error"') == 1


async def test_a_model_that_is_added_is_served_under_its_name(site: Site) -> None:
    async with site.router() as router, site.agent() as agent:
        agent.rewrite(
            external(agent.worker_url, upstream_name="engine/tiny"),
            external(agent.worker_url, model="org/other:1b", upstream_name="engine/tiny"),
        )
        await agent.client.post("/internal/reload", json={})
        await until_served(router, model="org/other:1b")
        found = await router.client.get("/v1/models/org/other:1b")
        assert found.json()["id"] == "org/other:1b"
