"""Errors link to a page that says what their code means, and who is refused may read it."""

from __future__ import annotations

import httpx
import pytest

from shared.testing.raw_client import call_raw
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of, key, one_engine


def page_of(answer: httpx.Response) -> str:
    """Return the path to which an error links."""
    assert answer.links["help"]["rel"] == "help"
    return str(answer.links["help"]["url"])


async def test_who_is_refused_can_read_why_without_a_key(start_router: StartRouter) -> None:
    async with start_router() as router:
        text = router.write(key())
        await router.catch_up()
        refused = await router.client.get("/v1/models")
        assert error_of(refused)["code"] == "invalid_api_key"
        assert page_of(refused) == "/errors/invalid_api_key"
        page = await router.client.get(page_of(refused))
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/plain")
        assert page.text.startswith("invalid_api_key\n")
        assert "iir keys create" in page.text
        served = await router.client.get("/v1/models", headers=bearer(text))
        assert "link" not in served.headers


async def test_all_kinds_of_errors_link_to_their_page(start_router: StartRouter) -> None:
    async with one_engine(start_router, router_attempts=1) as scene:
        answers = [
            await scene.client.post(CHAT, json=chat("unknown")),
            await scene.client.post("/v1/messages", json=chat("unknown")),
            await scene.client.get("/v1/nothing"),
            await scene.client.get("/health", headers={"host": "evil.example"}),
        ]
        scene.engine.script.add("empty_200")
        answers.append(await scene.client.post(CHAT, json=chat()))
        codes = [answer.json()["error"]["code"] for answer in answers]
        assert codes == [
            "model_not_found",
            "model_not_found",
            "not_found",
            "host_not_allowed",
            "upstream_failed",
        ]
        assert [page_of(answer) for answer in answers] == [f"/errors/{code}" for code in codes]
        for path in map(page_of, answers):
            assert (await scene.client.get(path)).status_code == 200
        raw = await call_raw(scene.router.base_url, "/" + "x" * 20_000, method="GET")
        assert b'\r\nlink: </errors/url_too_long>; rel="help"\r\n' in raw


@pytest.mark.parametrize("code", ["simulated", "x>, <https://evil.example"])
async def test_a_code_of_an_upstreams_own_links_to_nothing(
    start_router: StartRouter, code: str
) -> None:
    async with one_engine(start_router, router_attempts=1) as scene:
        scene.engine.script.add("status:code=400,shape=openai")
        answer = await scene.client.post(CHAT, json=chat())
        assert error_of(answer)["code"] == "simulated"
        assert "link" not in answer.headers
        unknown = await scene.client.get(f"/errors/{code}")
        assert unknown.status_code == 404
        assert error_of(unknown)["code"] == "not_found"


async def test_a_page_that_may_call_can_follow_the_link(start_router: StartRouter) -> None:
    origin = "https://page.example"
    async with start_router(router_cors_origins=origin) as router:
        answer = await router.client.get("/v1/nothing", headers={"origin": origin})
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert "link" in exposed
