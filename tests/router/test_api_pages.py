"""Web pages of other origins: those that may call, and their preflights."""

from __future__ import annotations

from tests.router.harness import StartRouter
from tests.router.scenes import error_of

ASKS = {"access-control-request-method": "POST"}


async def test_a_preflight_of_an_allowed_page_is_answered(start_router: StartRouter) -> None:
    async with start_router(router_cors_origins="http://good.example") as router:
        headers = {**ASKS, "origin": "http://good.example"}
        answer = await router.client.options("/v1/chat/completions", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://good.example"


async def test_other_preflights_get_an_error_like_all_others(start_router: StartRouter) -> None:
    async with start_router(router_cors_origins="http://good.example") as router:
        foreign = {**ASKS, "origin": "http://evil.example"}
        rebound = {**ASKS, "origin": "http://good.example", "host": "evil.example"}
        for headers, status in ((foreign, 405), (rebound, 403)):
            answer = await router.client.options("/v1/chat/completions", headers=headers)
            assert answer.status_code == status
            assert error_of(answer)["code"] in {"method_not_allowed", "host_not_allowed"}
            assert answer.headers["x-request-id"]
            assert "access-control-allow-origin" not in answer.headers


async def test_health_is_asked_by_head_too(start_router: StartRouter) -> None:
    async with start_router() as router:
        for path in ("/health", "/livez", "/readyz"):
            answer = await router.client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
