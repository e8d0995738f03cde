"""Models, health, metrics and documentation."""

from __future__ import annotations

import re

import anyio
import httpx
import pytest

from router.domain import DeploymentEntry, PrefixRule
from router.store.catalog import add_alias, add_model, add_prefix_rule
from shared.testing.wire import Exchange, WireServer
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, chat, error_of, one_engine


async def test_models_as_the_registry_has_them(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:

        def change(connection: object) -> None:
            row = DeploymentEntry(provider="engine", upstream_name="x", context_tokens=4096)
            add_model(connection, "org/big:8b", row, aliases=("org/alias",))  # type: ignore[arg-type]
            add_alias(connection, "small", "tiny")  # type: ignore[arg-type] # a connection

        scene.router.write(change)
        await scene.router.catch_up()
        listed = (await scene.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["org/big:8b", "tiny"]
        big, tiny = listed["data"]
        assert (
            tiny.items() >= {"object": "model", "owned_by": "engine", "aliases": ["small"]}.items()
        )
        assert big["context_length"] == 4096
        assert isinstance(tiny["created"], int)
        assert tiny["created"] > 1_700_000_000
        for name, model in (("org/big:8b", big), ("org/alias", big), ("small", tiny)):
            assert (await scene.client.get(f"/v1/models/{name}")).json() == model
        quoted = await scene.client.get("/v1/models/org%2Fbig:8b")
        assert quoted.json() == big


async def test_a_change_reaches_a_running_router_within_a_second(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        row = DeploymentEntry(provider="engine", upstream_name="tiny")
        scene.router.write(lambda c: add_model(c, "later", row))
        with anyio.fail_after(1):
            while (answer := await scene.client.post(CHAT, json=chat("later"))).status_code != 200:
                await anyio.sleep(0.02)
        assert answer.headers["x-iir-model"] == "later"


async def test_prefix_rules_send_unknown_models_on(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        scene.router.write(lambda c: add_prefix_rule(c, PrefixRule("tin", "engine")))
        await scene.router.catch_up()
        answer = await scene.client.post(CHAT, json=chat("tinker"))
        assert (answer.status_code, answer.headers["x-iir-model"]) == (404, "tinker")
        assert answer.headers["x-iir-endpoint"] == "engine"


async def test_health(start_router: StartRouter) -> None:
    async with start_router() as router:
        for path in ("/health", "/livez"):
            assert (await router.client.get(path)).json() == {"status": "ok"}
        ready = await router.client.get("/readyz")
        assert ready.json() == {"status": "ready", "registry": "ok", "agents": 0}
        router.router.drain()
        ready = await router.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await router.client.get("/livez")).status_code == 200
        router.router.readiness.is_draining = router.router.readiness.is_loaded = False
        ready = await router.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")


@pytest.mark.slow
async def test_metrics_name_what_happened_and_stay_small(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        await scene.client.post(CHAT, json=chat())
        scene.engine.script.add("status:code=400,shape=openai")
        await scene.client.post(CHAT, json=chat())
        text = (await scene.client.get("/metrics")).text
        for line in (
            'iir_attempts_total{endpoint="engine",outcome="ok"} 1.0',
            'iir_attempts_total{endpoint="engine",outcome="http_4xx"} 1.0',
            'gen_ai_server_request_duration_seconds_count{endpoint="engine",operation="chat/comp',
            'gen_ai_server_time_to_first_token_seconds_count{endpoint="engine"',
            'gen_ai_client_token_usage_total{endpoint="engine",type="input"}',
            'gen_ai_client_token_usage_total{endpoint="engine",type="output"}',
            "iir_in_flight 0.0",
            "iir_snapshot_version",
            "iir_registry_errors_total 0.0",
        ):
            assert line in text, line
        before = len(text.splitlines())
        for number in range(300):
            await scene.client.post(CHAT, json=chat(f"unknown-{number}"))
            await scene.client.get(f"/nothing/{number}")
        after = (await scene.client.get("/metrics")).text
        assert len(after.splitlines()) == before
        assert "unknown-" not in after


async def test_metrics_tell_how_the_event_loop_fares(start_router: StartRouter) -> None:
    async with start_router() as router:
        before = await loop_figures(router.client)
        with anyio.fail_after(5):
            while (after := await loop_figures(router.client))["delay"] == before["delay"]:
                await anyio.sleep(0.01)
        async with anyio.create_task_group() as held:
            for _ in range(50):
                held.start_soon(anyio.sleep_forever)
            assert (await loop_figures(router.client))["tasks"] > after["tasks"] + 40
            held.cancel_scope.cancel()


async def loop_figures(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    names = {"tasks": "iir_event_loop_tasks", "delay": "iir_event_loop_delay_seconds_count"}
    return {
        key: float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])
        for key, name in names.items()
    }


async def test_300_models_of_a_prefix_rule_add_no_series_each(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        scene.router.write(lambda c: add_prefix_rule(c, PrefixRule("unknown-", "engine")))
        await scene.router.catch_up()
        for number in range(100):
            await scene.client.post(CHAT, json=chat(f"unknown-{number}"))
        text = (await scene.client.get("/metrics")).text
        assert "iir_places_taken 0.0" in text
        assert "unknown-" not in text
        assert len(text.splitlines()) < 150


async def test_what_an_upstream_claims_to_have_used_breaks_nothing(
    start_router: StartRouter,
) -> None:
    usages = [
        b'{"prompt_tokens":-5}',
        b'{"prompt_tokens":1e99}',
        b'{"completion_tokens":' + b"9" * 40 + b"}",
        b'{"prompt_tokens":"x"}',
        b"[]",
        b"7",
        b'{"prompt_tokens":2.5}',
    ]
    bodies = [b'{"choices":[],"usage":' + usage + b"}" for usage in usages]
    left = iter(bodies)

    async def boast(exchange: Exchange) -> None:
        body = next(left)
        headers = [("content-type", "application/json")]
        await exchange.send_head(200, headers, length=len(body))
        await exchange.send_body(body)

    server = WireServer(boast)
    upstream = await server.start("127.0.0.1", 0)
    async with start_router(upstream=upstream, models=("tiny",)) as router:
        for body in bodies:
            answer = await router.client.post(CHAT, json=chat())
            assert (answer.status_code, answer.content) == (200, body)
        assert await router.router.ledger.flush() >= 0
        assert router.router.ledger.waiting == 0
    await server.close()


async def test_the_documentation_loads_nothing_from_elsewhere(start_router: StartRouter) -> None:
    async with start_router() as router:
        page = (await router.client.get("/docs")).text
        linked = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
        assert "/openapi.json" in linked
        for link in linked:
            assert not link.startswith(("http:", "https:", "//")), link
            if link.startswith("/"):
                found = await router.client.get(link)
                assert found.status_code == 200, link
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "https://" not in page
        script = await router.client.get("/docs/swagger-ui-bundle.js")
        assert script.headers["content-type"].startswith("text/javascript")
        missing = await router.client.get("/docs/other.js")
        assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")


async def test_the_description_lists_all_routes_for_users(start_router: StartRouter) -> None:
    async with start_router() as router:
        described = (await router.client.get("/openapi.json")).json()
        assert described["info"]["title"] == "Intelligent Inference Router"
        for path, method in (
            *(("/v1/chat/completions", "post"), ("/v1/completions", "post")),
            *(("/v1/embeddings", "post"), ("/v1/models", "get"), ("/v1/models/{model_id}", "get")),
            *(("/health", "get"), ("/readyz", "get"), ("/metrics", "get")),
            ("/internal/v1/agents/{agent_id}/lease", "put"),
        ):
            assert method in described["paths"][path], path
        again = (await router.client.get("/openapi.json")).json()
        assert again == described
