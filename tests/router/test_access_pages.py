"""The malicious web page, the forged host and the odd path: none of them reaches an engine."""

from __future__ import annotations

from shared.testing.raw_client import call_raw
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of, key, one_engine

PAGES: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"host": "evil.example"},
    {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
    {"host": "127.0.0.1.evil.example"},
]


async def test_a_malicious_web_page_reaches_nothing(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for headers in PAGES:
            sent = {"content-type": "application/json", **headers}
            for path in (CHAT, "/v1/completions", "/v1/embeddings"):
                answer = await scene.client.post(path, json=chat(), headers=sent)
                assert answer.status_code in {403, 415}, headers
                error_of(answer)
                assert "access-control-allow-origin" not in answer.headers
            if "content-type" not in headers:
                listed = await scene.client.get("/v1/models", headers=headers)
                assert listed.status_code == 403, headers
        preflight = await scene.client.options(
            CHAT,
            headers={
                "origin": "https://evil.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type",
            },
        )
        assert preflight.status_code == 405
        assert not [name for name in preflight.headers if name.startswith("access-control")]
        assert scene.engine.requests == []
        own = {"origin": scene.router.base_url, "sec-fetch-site": "same-origin"}
        assert (await scene.client.post(CHAT, json=chat(), headers=own)).status_code == 200


async def test_a_rebound_name_is_refused_with_a_key_too(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        text = scene.router.write(key())
        await scene.router.catch_up()
        for path in (CHAT, "/health", "/internal/v1/agents/x", "/nothing"):
            headers = {**bearer(text), "host": "evil.example"}
            answer = await scene.client.post(path, json=chat(), headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (403, "host_not_allowed")


async def test_allowed_pages_may_call_and_read_errors(start_router: StartRouter) -> None:
    page = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    async with one_engine(start_router, router_cors_origins="https://app.example") as scene:
        preflight = await scene.client.options(
            CHAT,
            headers={
                **page,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type,x-stainless-os",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        for body, status in ((chat(), 200), (chat("unknown"), 404), (chat(stream=True), 200)):
            answer = await scene.client.post(CHAT, json=body, headers=page)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert "access-control-allow-credentials" not in answer.headers
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        foreign = {"origin": "https://evil.example"}
        answer = await scene.client.post(CHAT, json=chat(), headers=foreign)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


TRICKS = [
    "/v1//chat/completions",
    "//v1/chat/completions",
    "/v1/./chat/completions",
    "/x/../v1/chat/completions",
    "/health/../v1/chat/completions",
    "/v1/%63hat/completions",
    "/v1/chat%2fcompletions",
    "/v1/chat/completions%00",
    "/%2e%2e/v1/chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions;x",
    "/v1/chat/completions?x=1",
    "/V1/chat/completions",
    "http://evil.example/v1/chat/completions",
    "http://localhost/health/../v1/chat/completions",
    "http://localhost/v1/chat/completions",
    "/livez#/v1/chat/completions",
]


async def test_no_trick_with_the_path_reaches_an_engine_without_a_key(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        scene.router.write(key())
        await scene.router.catch_up()
        for target in TRICKS:
            for host in ("localhost", "evil.example", "localhost/health?", "[::1]:x"):
                raw = await call_raw(scene.router.base_url, target, chat(), headers={"host": host})
                status = int(raw.split(b" ", 2)[1])
                assert status in {400, 401, 403, 404, 405}, (target, host, raw[:200])
        assert scene.engine.requests == []


async def test_two_hosts_are_none(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        raw = await call_raw(
            scene.router.base_url, CHAT, chat(), headers={"host": "localhost\r\nHost: evil.example"}
        )
        assert raw.startswith(b"HTTP/1.1 400")
