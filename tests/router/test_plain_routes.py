"""Models, health and metrics are served without the framework."""

from __future__ import annotations

from pathlib import Path

import httpx

from router.app import Router
from shared.testing.serving import serving
from tests.router.agents import agent_of
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, chat, one_engine

PLAIN = ("/health", "/livez", "/readyz", "/metrics", "/v1/models")


async def test_strangers_paths_do_not_load_the_framework(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        framework = scene.router.router._framework
        assert framework is not None
        known = ("/", "/v1/models", "/v1/models/none", "/health", "/metrics")
        for path in (*known, "/wp-login.php", "/docs-old/x.php", "/openapi.json.bak", "/internal"):
            await scene.client.get(path)
            await scene.client.post(path)
        assert framework._loading is None
        assert (await scene.client.get("/docs")).status_code == 200
        assert (await scene.client.get("/errors/model_not_found")).status_code == 200
        assert framework._loading is not None


async def test_a_router_that_has_agents_loads_it_behind_its_start(
    start_router: StartRouter, tmp_path: Path
) -> None:
    async with start_router() as router:
        await agent_of(router, "http://127.0.0.1:9")
        settings = router.settings
    again = Router(settings)
    async with serving(again.asgi()):
        assert again._framework is not None
        loading = again._framework._loading
        assert loading is not None
        await loading


async def test_a_head_request_tells_the_length_and_sends_nothing(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for path in ("/health", "/v1/models", "/v1/models/tiny"):
            whole = await scene.client.get(path)
            head = await scene.client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            for name in ("content-length", "content-type"):
                assert head.headers[name] == whole.headers[name], path


async def test_a_prefix_that_a_proxy_takes_off_is_no_part_of_a_path(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        app = scene.router.router.asgi()
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1), root_path="/iir")
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1/iir"
        ) as client:
            for path in ("/health", "/v1/models", "/docs", "/openapi.json", "/errors/not_found"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.post(CHAT, json=chat())).status_code == 200
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/iirhealth")).status_code == 404


async def test_the_document_says_what_each_plain_route_answers(start_router: StartRouter) -> None:
    async with start_router() as router:
        paths = (await router.client.get("/openapi.json")).json()["paths"]
        shown = {path: (await router.client.get(path)).headers for path in PLAIN}
    for path, headers in shown.items():
        (media_type,) = paths[path]["get"]["responses"]["200"]["content"]
        assert headers["content-type"].startswith(media_type), path
    names = [
        each["operationId"]
        for one in paths.values()
        for each in one.values()
        if "operationId" in each
    ]
    assert len(names) == len(set(names)) >= len(PLAIN)
