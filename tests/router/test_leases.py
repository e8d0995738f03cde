"""The lease protocol over HTTP with real credentials, and what it means for requests."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from router.app import Router
from router.domain import DeploymentEntry
from router.fleet.leases import LeaseDesk
from router.fleet.membership import LeaseState, Membership
from router.fleet.registry import Fleet
from router.store.agents import revoke_agent
from router.store.catalog import add_model
from shared.contracts.agents import Heartbeat, Registration
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.agents import PULL, TOKEN, Agent, FailingStore, agent_of, scene_of
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of
from tests.router.test_fleet_membership import FakeClock, beat, registration


async def test_register_serve_renew_release(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        grant = (await scene.agent.register()).json()
        assert grant["ttl_s"] == 30
        assert grant["renew_s"] == 10
        for name in ("tiny", "default"):
            answer = await scene.client.post(CHAT, json=chat(name))
            assert answer.status_code == 200
            assert answer.headers["x-iir-endpoint"] == "agent:mac"
            assert answer.headers["x-iir-model"] == "tiny"
            assert answer.headers["x-iir-zone"] == "local"
        assert scene.engine.requests[-1].header("authorization") == f"Bearer {TOKEN}"
        assert (await scene.client.get("/readyz")).json()["agents"] == 1
        renewed = await scene.agent.renew(queue={"running": 1, "waiting": 3})
        assert renewed.json()["lease_id"] == scene.agent.lease_id
        assert (await scene.agent.release()).status_code == 204
        gone = await scene.client.post(CHAT, json=chat())
        assert (gone.status_code, error_of(gone)["code"]) == (503, "agent_unavailable")
        assert int(gone.headers["retry-after"]) > 0
        assert (await scene.agent.renew()).status_code == 404
        assert (await scene.client.get("/readyz")).json()["agents"] == 0
        assert (await scene.agent.register()).status_code == 200
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200


async def test_what_an_agent_measured_is_listed(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register()
        speed = {"engine": "llama_cpp", "tokens_per_s": 61.5, "device": "CPU only"}
        ttft = [{"prompt_tokens": 900, "ttft_ms": 210.0}]
        models = [{"id": "tiny", "status": "loaded", "bench": [{**speed, "ttft": ttft}]}]
        await scene.agent.renew(models=models)
        (row,) = (await scene.client.get("/v1/models/tiny")).json()["bench"]
        assert row.items() >= {**speed, "ttft": ttft, "is_current": True}.items()
        await scene.agent.renew(models=[{"id": "tiny", "status": "loaded"}])
        assert "bench" not in (await scene.client.get("/v1/models/tiny")).json()


async def test_models_of_agents_are_listed_with_their_status(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register()

        async def listed() -> dict[str, Any]:
            data = (await scene.client.get("/v1/models")).json()["data"]
            return {model["id"]: model for model in data}

        tiny = (await listed())["tiny"]
        assert tiny["status"] == {"value": "loaded"}
        assert tiny["owned_by"] == "mac"
        assert tiny["aliases"] == ["default"]
        assert tiny["context_length"] == 2048
        assert tiny["created"] == 1_700_000_000
        assert (await listed())["big"]["status"] == {"value": "unloaded"}
        assert "bench" not in tiny, "nothing was measured"
        models = [{"id": "tiny", "status": "loading"}, {"id": "new", "status": "downloading"}]
        await scene.agent.renew(models=models)
        assert {name: model["status"]["value"] for name, model in (await listed()).items()} == {
            "tiny": "loading",
            "new": "downloading",
        }
        assert (await scene.client.get("/v1/models/new")).json()["id"] == "new"
        assert (await scene.client.get("/v1/models/big")).status_code == 404
        assert (await scene.client.post(CHAT, json=chat("default"))).status_code == 404
        await scene.agent.release()
        assert (await listed())["tiny"]["status"] == {"value": "unavailable"}


async def test_a_model_without_weights_says_how_to_get_them(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register()
        answer = await scene.client.post(CHAT, json=chat("big"))
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (404, "model_not_pulled")
        assert PULL in error["message"]
        assert scene.engine.requests == []
        await scene.agent.renew(models=[{"id": "big", "is_pulled": False}])
        answer = await scene.client.post(CHAT, json=chat("big"))
        assert "iir-agent pull big" in error_of(answer)["message"]


async def test_what_the_lease_desk_refuses(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        agent = scene.agent
        for fields, status, code in (
            ({"protocol": 2}, 400, "lease_protocol_unsupported"),
            ({"incarnation": -1}, 400, "invalid_request"),
            ({"incarnation": "x"}, 400, "invalid_request"),
            ({"name": ""}, 400, "invalid_request"),
            ({"access_token": "short"}, 400, "invalid_request"),
            ({"models": [{"id": ""}]}, 400, "invalid_request"),
            ({"models": [{"id": "a", "status": "odd"}]}, 400, "invalid_request"),
            ({"base_url": "http://169.254.169.254:80"}, 403, "agent_address_refused"),
            ({"base_url": "http://[::ffff:169.254.169.254]:80"}, 403, "agent_address_refused"),
            ({"base_url": "http://192.0.2.7:5000"}, 403, "agent_address_refused"),
            ({"base_url": "http://evil.example:5000"}, 403, "agent_address_refused"),
            ({"base_url": "file:///etc/passwd"}, 403, "agent_address_refused"),
        ):
            answer = await agent.register(**fields)
            assert (answer.status_code, error_of(answer)["code"]) == (status, code), fields
            assert agent.credential not in answer.text
            assert TOKEN not in answer.text
        assert (await agent.renew()).status_code == 404
        assert (await agent.release()).status_code == 404
        assert (await agent.register(future_field={"x": 1})).status_code == 200
        for fields in ({"seq": -1}, {"lease_id": 7}, {"state": "odd"}):
            answer = await agent.renew(**fields)
            assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request")
        assert error_of(await agent.renew(lease_id="another"))["code"] == "not_found"


async def test_incarnations(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        old = scene.agent
        await old.register()
        new = Agent(old.client, old.credential, old.base_url, incarnation=old.incarnation + 1)
        assert (await new.register()).status_code == 200
        for answer in (await old.renew(), await old.register()):
            assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")
        assert (await new.renew()).status_code == 200
        assert (await new.register()).status_code == 200


async def test_what_an_agent_says_has_a_limit(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        answer = await scene.client.put(
            "/internal/v1/agents/x",
            content=b"x" * 1_100_000,
            headers=bearer(scene.agent.credential),
        )
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


async def test_a_credential_is_one_agents(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register()
        thief = Agent(
            scene.client, scene.agent.credential, scene.agent.base_url, agent_id="another-id"
        )
        for answer, status in ((await thief.register(), 403), (await thief.renew(), 404)):
            assert answer.status_code == status
        assert (await thief.release()).status_code == 404
        other = await agent_of(scene.router, scene.agent.base_url, "second")
        assert (await other.register()).status_code == 403  # the id is bound to the first one
        assert (await scene.agent.renew()).status_code == 200
        scene.router.write(lambda c: revoke_agent(c, "mac"))
        await scene.router.catch_up()
        for answer in (await scene.agent.renew(), await scene.agent.register()):
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        gone = await scene.client.post(CHAT, json=chat())
        assert error_of(gone)["code"] in {"model_not_found", "agent_unavailable"}
        assert scene.engine.requests == []


async def test_the_operator_can_list_an_agents_address(start_router: StartRouter) -> None:
    async with scene_of(start_router, router_agent_hosts="192.0.2.7") as scene:
        assert (await scene.agent.register(base_url="http://192.0.2.7:5000")).status_code == 200


async def test_late_heartbeats_change_nothing(start_router: StartRouter) -> None:
    async with scene_of(start_router) as scene:
        await scene.agent.register()
        await scene.agent.renew(seq=9, state="draining")
        late = await scene.agent.renew(seq=3, state="ready")
        assert late.status_code == 200
        gone = await scene.client.post(CHAT, json=chat())
        assert (gone.status_code, error_of(gone)["code"]) == (503, "agent_unavailable")
        await scene.router.router.desk.flush()
        stored = scene.router.write(
            lambda c: c.exec_driver_sql("SELECT heartbeat FROM leases").scalar_one()
        )
        assert '"seq":9' in stored
        await scene.agent.renew(seq=10)
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200


async def test_two_agents_share_a_model_and_stand_in_for_each_other(
    start_router: StartRouter,
) -> None:
    second = SimulatedEngine(EngineOptions(models=("tiny",), api_key=TOKEN))
    async with scene_of(start_router) as scene, running(second) as second_url:
        await scene.agent.register()
        other = await agent_of(scene.router, second_url, "second")
        other.agent_id = "22222222-2222-4222-8222-222222222222"
        assert (await other.register()).status_code == 200
        assert (await scene.client.get("/readyz")).json()["agents"] == 2
        # the one with the longer queue is asked second
        await scene.agent.renew(queue={"waiting": 5})
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "agent:second"
        second.script.add("status:code=503")
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "agent:mac"
        assert answer.headers["x-iir-attempts"] == "2"
        await other.renew(state="draining")
        for _ in range(3):
            answer = await scene.client.post(CHAT, json=chat())
            assert answer.headers["x-iir-endpoint"] == "agent:mac"


async def test_an_agent_that_does_not_answer_is_said_to_come_back(
    start_router: StartRouter,
) -> None:
    async with start_router() as router:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
            agent = await agent_of(router, dead)
            await agent.register()
            answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (503, "agent_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert dead not in answer.text


async def test_a_deployment_on_local_is_whatever_agent_has_the_model(
    start_router: StartRouter,
) -> None:
    async with scene_of(start_router) as scene:

        def deploy(connection: Any) -> None:
            for name, upstream in (("assistant", "tiny"), ("lost", "nowhere"), ("tiny", "tiny")):
                add_model(
                    connection, name, DeploymentEntry(provider="local", upstream_name=upstream)
                )

        scene.router.write(deploy)
        await scene.router.catch_up()
        before = await scene.client.post(CHAT, json=chat("assistant"))
        assert (before.status_code, error_of(before)["code"]) == (503, "agent_unavailable")
        unknown = await scene.client.post(CHAT, json=chat("local-thing"))
        assert (unknown.status_code, error_of(unknown)["code"]) == (503, "agent_unavailable")
        await scene.agent.register()
        answer = await scene.client.post(CHAT, json=chat("assistant"))
        assert (answer.status_code, answer.headers["x-iir-model"]) == (200, "assistant")
        for name in ("lost", "local-thing"):
            lost = await scene.client.post(CHAT, json=chat(name))
            assert (lost.status_code, error_of(lost)["code"]) == (404, "model_not_found")
        # the same place by two ways is tried once
        scene.engine.script.add("status:code=503", "status:code=503")
        failed = await scene.client.post(CHAT, json=chat("tiny"))
        assert (failed.status_code, failed.headers["x-iir-attempts"]) == (503, "1")


async def test_a_restarted_router_knows_its_agents(start_router: StartRouter) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",), api_key=TOKEN))
    async with running(engine) as url:
        async with start_router() as router:
            agent = await agent_of(router, url)
            await agent.register()
            await agent.renew()
        async with start_router() as router:
            agent.client = router.client
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
            assert (await agent.renew()).status_code == 200
            assert (await agent.release()).status_code == 204
        async with start_router() as router:
            gone = await router.client.post(CHAT, json=chat())
            assert error_of(gone)["code"] == "agent_unavailable"


async def test_agents_are_taken_in_while_the_registry_is_away(start_router: StartRouter) -> None:
    async with scene_of(start_router, router_catalog_poll_s=3600) as scene:
        desk = scene.router.router.desk
        store = FailingStore()
        desk._store = store  # what a full disk looks like from here
        assert (await scene.agent.register()).status_code == 200
        assert (await scene.agent.renew()).status_code == 200
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200
        with pytest.raises(OSError, match="full"):
            await desk.flush()
        with pytest.raises(OSError, match="full"):
            await desk.flush()
        store.is_full = False
        await desk.flush()
        await desk.flush()
        assert [beats[0][2].seq for beats in store.saved] == [1]
        store.is_full = True
        assert (await scene.agent.release()).status_code == 204
        assert (await scene.client.post(CHAT, json=chat())).status_code == 503


async def test_leases_expire_by_the_routers_own_clock() -> None:
    clock = FakeClock()
    fleet = Fleet(Membership(clock, 30.0), lambda _: None)
    desk = LeaseDesk(fleet, FailingStore(), ttl_s=30, renew_s=10, allowed_addresses=frozenset())
    grant = await desk.register(1, "mac", "a", registration(), "127.0.0.1")
    member = fleet.membership.get(1)
    assert member is not None
    assert fleet.resolve("tiny").candidates[0].is_suspect is False
    clock.now += 31
    assert fleet.resolve("tiny").candidates[0].is_suspect is True
    clock.now += 30
    with pytest.raises(Exception, match="not connected"):
        fleet.resolve("tiny")
    assert fleet.models()[0].status == "unavailable"
    desk.renew(1, "a", beat(1, grant.lease_id))
    assert fleet.resolve("tiny").candidates[0].is_suspect is False
    member = fleet.membership.get(1)
    assert member is not None
    assert fleet.membership.state(member) is LeaseState.LIVE


async def test_a_late_heartbeat_does_not_replace_a_newer_one_that_waits() -> None:
    fleet = Fleet(Membership(FakeClock(), 30.0), lambda _: None)
    store = FailingStore()
    desk = LeaseDesk(fleet, store, ttl_s=30, renew_s=10, allowed_addresses=frozenset())
    grant = await desk.register(1, "mac", "a", registration(), "127.0.0.1")
    desk.renew(1, "a", beat(5, grant.lease_id))
    desk.renew(1, "a", beat(4, grant.lease_id))
    store.is_full = False
    await desk.flush()
    assert [entry[2].seq for entry in store.saved[0]] == [5]


def test_the_messages_ignore_what_a_newer_peer_adds() -> None:
    body = {**registration().model_dump(), "new": 1, "models": [{"id": "a", "new": 2}]}
    assert Registration.model_validate(body).models[0].id == "a"
    assert Heartbeat.model_validate({**beat(1).model_dump(), "new": 1}).seq == 1
    assert Router.__doc__
