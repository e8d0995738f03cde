"""Models, health and metrics are served without the framework."""

from __future__ import annotations

from tests.router.harness import StartRouter
from tests.router.scenes import one_engine


async def test_strangers_paths_do_not_load_the_framework(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        router, built = scene.router.router, []
        build = router.control_app
        router.control_app = lambda access: built.append(1) or build(access)  # type: ignore[method-assign,func-returns-value] # watched
        for path in ("/", "/wp-login.php", "/v1/models", "/v1/models/none", "/health", "/metrics"):
            await scene.client.get(path)
            await scene.client.post(path)
        assert built == []
        assert (await scene.client.get("/docs")).status_code == 200
        assert (await scene.client.get("/errors/model_not_found")).status_code == 200
        assert built == [1]


async def test_a_head_request_tells_the_length_and_sends_nothing(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for path in ("/health", "/v1/models", "/v1/models/tiny"):
            whole = await scene.client.get(path)
            head = await scene.client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            for name in ("content-length", "content-type"):
                assert head.headers[name] == whole.headers[name], path
