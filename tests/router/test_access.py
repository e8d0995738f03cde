"""Who may do what: open mode, keys and scopes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from fastapi.routing import APIRoute

from router.api import access as access_module
from router.api.access import Access, Caller
from router.app import FRAMEWORK_PATHS, Router
from router.domain import ApiKey, Catalog, KeyId, Scope, ShownCredential
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from router.settings import load_settings
from router.store.agents import add_agent, revoke_agent
from router.store.keys import make_key, revoke_key
from shared.http.errors import CrossSiteRefused, Forbidden, Unauthorized
from shared.http.origin import OriginRules
from shared.testing.raw_client import call_raw
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of, key, one_engine

OPEN = ("/health", "/livez", "/readyz")
STATIC = "/errors/{code}"  # the same text everywhere
OPEN_IN_OPEN_MODE = ("/metrics", "/docs", "/openapi.json", "/docs/swagger-ui.css", "/v1/models")
RULES = OriginRules("127.0.0.1", "X")


def fleet_with(*keys: ApiKey, is_open: bool = False) -> Fleet:
    fleet = Fleet(Membership(lambda: 0.0, 30.0), lambda _: None)
    fleet.swap(Catalog(keys={key.prefix: key for key in keys}, is_open=is_open))
    return fleet


def made(*scopes: Scope, agent: str | None = None) -> tuple[str, ApiKey]:
    text, prefix, digest = make_key()
    found = ApiKey(
        id=KeyId("key-1"),
        name="n",
        prefix=prefix,
        digest=digest,
        scopes=frozenset(scopes),
        agent=agent,
    )
    return text, found


def scope_of(
    credential: bytes | None = None,
    *,
    client: str = "127.0.0.1",
    server: str = "127.0.0.1",
    **headers: str,
) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    if credential is not None:
        pairs.append((b"authorization", credential))
    host = (b"host", b"127.0.0.1:8000")
    return {"client": (client, 1), "server": (server, 8000), "headers": [host, *pairs]}


@pytest.mark.parametrize("credential", [None, b"", b"Bearer any", b"Basic eDp5", b"\xff" * 60_000])
def test_in_open_mode_any_key_or_none_will_do(credential: bytes | None) -> None:
    access = Access(fleet_with(is_open=True), RULES, frozenset())
    for needed in (Scope.INFERENCE, Scope.ADMIN):
        assert access.require(scope_of(credential), needed) == Caller()
    with pytest.raises(Unauthorized):
        access.require(scope_of(credential), Scope.AGENT)


@pytest.mark.parametrize(
    "ends",
    [
        {"client": "192.168.1.9"},
        {"server": "192.168.1.8"},
        {"client": "192.168.1.9", "server": "192.168.1.8"},
        {"client": "::ffff:192.168.1.9"},
        {"client": ""},
    ],
)
def test_open_mode_ends_at_this_machine(ends: dict[str, str]) -> None:
    access = Access(fleet_with(is_open=True), RULES, frozenset())
    scope = scope_of(b"Bearer any", **ends)
    assert not access.is_open(scope)
    with pytest.raises(Unauthorized):
        access.require(scope, Scope.INFERENCE)


def test_open_mode_is_not_for_web_pages() -> None:
    access = Access(fleet_with(is_open=True), RULES, frozenset())
    for headers in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
        with pytest.raises(CrossSiteRefused):
            access.require(scope_of(None, **headers), Scope.INFERENCE)


def test_a_key_does_what_its_scopes_say() -> None:
    text, found = made(Scope.INFERENCE)
    access = Access(fleet_with(found), RULES, frozenset())
    scope = scope_of(f"Bearer {text}".encode())
    assert access.require(scope, Scope.INFERENCE).key_id == "key-1"
    for needed in (Scope.ADMIN, Scope.AGENT):
        with pytest.raises(Forbidden, match=f"--scope {needed.value}"):
            access.require(scope, needed)


def test_an_agents_credential_says_whose_it_is() -> None:
    text, found = made(Scope.AGENT, agent="7")
    access = Access(fleet_with(found), RULES, frozenset())
    assert access.require(
        scope_of(f"Bearer {text}".encode()), Scope.AGENT
    ).agent == ShownCredential(7, found.prefix)
    with pytest.raises(Forbidden):
        access.require(scope_of(f"Bearer {text}".encode()), Scope.INFERENCE)


def odd_keys(text: str) -> list[bytes]:
    prefix = text[7:15]
    return [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer sk-iir-",
        b"Bearer " + text[:-1].encode(),
        b"Bearer " + text.encode() + b"x",
        b"Bearer " + text.upper().encode(),
        b"Bearer x" + text.encode(),
        b"Basic " + text.encode(),
        text.encode(),
        f"Bearer sk-iir-{prefix}-{'a' * 40}".encode(),
        f"Bearer sk-iir-{prefix}".encode(),
        b"Bearer ' OR 1=1 --",
        b"Bearer sk-iir-' OR '1'='1'; DROP TABLE api_keys; --",
        b"Bearer " + b"a" * 50_000,
        b"Bearer " + text.encode() + b" " * 10 + b"x" * 50_000,
        b"Bearer \xff\xfe\x00",
        "Bearer ключ".encode(),
        b"Bearer null",
        b"Bearer undefined",
        b"Bearer " + hashlib.sha256(text.encode()).hexdigest().encode(),
    ]


def test_odd_keys_are_unknown_and_never_repeated() -> None:
    text, found = made(Scope.INFERENCE)
    access = Access(fleet_with(found), RULES, frozenset())
    for odd in odd_keys(text):
        with pytest.raises(Unauthorized) as refused:
            access.require(scope_of(odd), Scope.INFERENCE)
        assert refused.value.status == 401
        for secret in (text, text[7:15], odd.decode("latin-1").partition(" ")[2][:12]):
            assert len(secret) < 4 or secret not in refused.value.message
    access.require(scope_of(b"bearer   " + text.encode() + b" "), Scope.INFERENCE)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    class Watched:
        @staticmethod
        def compare_digest(one: str, other: str) -> bool:
            compared.append((one, other))
            return one == other

    monkeypatch.setattr(access_module, "hmac", Watched)
    text, found = made(Scope.INFERENCE)
    access = Access(fleet_with(found), RULES, frozenset())
    for credential in (text, text[:-1] + "a", "unknown"):
        try:
            access.require(scope_of(f"Bearer {credential}".encode()), Scope.INFERENCE)
        except Unauthorized:
            continue
    # an unknown prefix costs the same comparison as a known one, and digests are compared, not keys
    assert len(compared) == 3
    assert all(len(one) == len(other) == 64 for one, other in compared)


async def test_every_route_says_who_may_use_it(start_router: StartRouter) -> None:
    router = Router(load_settings())
    access = Access(router.fleet, RULES, frozenset())
    app = router.control_app(access)
    routes = [route for route in walk(app.routes) if isinstance(route, APIRoute)]
    assert len(routes) >= 10
    for route in routes:
        assert route.path.startswith(FRAMEWORK_PATHS), "others are not handed to the framework"
        mark = getattr(route.endpoint, access_module._MARK, None)
        assert mark is not None, route.path
        needed, _ = mark
        if route.path == "/internal/v1/agents/join":  # a token is what it takes
            assert needed is None
            continue
        assert needed is not None or route.path == STATIC, route.path
        assert needed is Scope.AGENT or not route.path.startswith("/internal"), route.path
    for plain in router.plain_routes():
        assert plain.needed is not None or plain.path in OPEN, plain.path


def walk(routes: Any) -> Any:
    """Yield all routes, those of included routers too."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from walk(inner)
        else:
            yield route


async def test_a_route_that_declares_nothing_is_refused() -> None:
    router = Router(load_settings())
    access = Access(router.fleet, RULES, frozenset())
    app = router.control_app(access)

    @app.get("/forgotten")
    async def forgotten() -> str:
        return "reached"

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/forgotten")
    assert answer.status_code == 403
    assert "reached" not in answer.text


async def test_a_fresh_install_is_open_and_the_first_key_ends_that(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        for path in (*OPEN, *OPEN_IN_OPEN_MODE):
            assert (await scene.client.get(path)).status_code == 200, path
        for headers in ({}, bearer("anything"), bearer("sk-anything")):
            answer = await scene.client.post(CHAT, json=chat(), headers=headers)
            assert answer.status_code == 200
        # an agent's credential does not end open mode
        scene.router.write(lambda c: add_agent(c, "mac"))
        await scene.router.catch_up()
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200

        text = scene.router.write(key())
        with anyio.fail_after(1):
            while (await scene.client.post(CHAT, json=chat())).status_code != 401:
                await asyncio.sleep(0.02)
        for path in OPEN:
            assert (await scene.client.get(path)).status_code == 200
        for path in OPEN_IN_OPEN_MODE:
            answer = await scene.client.get(path, headers=bearer("sk-anything"))
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert (await scene.client.post(CHAT, json=chat(), headers=bearer(text))).status_code == 200
        assert (await scene.client.get("/v1/models", headers=bearer(text))).status_code == 200
        for path in OPEN_IN_OPEN_MODE[:-1]:
            answer = await scene.client.get(path, headers=bearer(text))
            assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden"), path
        # a page with a key is welcome: it was given one
        headers = {**bearer(text), "origin": "https://app.example", "content-type": "text/plain"}
        assert (await scene.client.post(CHAT, json=chat(), headers=headers)).status_code == 200


async def test_keys_can_be_revoked_and_that_does_not_open_the_router(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        text, admin = scene.router.write(key()), scene.router.write(key(Scope.ADMIN))
        await scene.router.catch_up()
        assert (await scene.client.post(CHAT, json=chat(), headers=bearer(text))).status_code == 200
        answer = await scene.client.post(CHAT, json=chat(), headers=bearer(admin))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
        assert (await scene.client.get("/metrics", headers=bearer(admin))).status_code == 200
        for credential in (text, admin):
            scene.router.write(partial(revoke_key, which=credential))
        await scene.router.catch_up()
        for headers in ({}, bearer(text), bearer(admin)):
            answer = await scene.client.post(CHAT, json=chat(), headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
            assert text not in answer.text


async def test_docs_and_metrics_can_be_made_public(start_router: StartRouter) -> None:
    async with start_router(router_public_routes="metrics, Docs") as router:
        router.write(key())
        await router.catch_up()
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert (await router.client.get(path)).status_code == 200
        assert (await router.client.get("/v1/models")).status_code == 401


async def test_odd_keys_over_the_wire(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        text = scene.router.write(key())
        await scene.router.catch_up()
        for odd in odd_keys(text):
            if b"\x00" in odd:
                continue  # no HTTP
            raw = await call_raw(
                scene.router.base_url,
                CHAT,
                chat(),
                headers={"host": "localhost", "authorization": odd.decode("latin-1")},
            )
            assert b" 401 " in raw.partition(b"\r\n")[0], odd[:40]
            assert text.encode() not in raw
        assert scene.engine.requests == []


async def test_the_agents_routes_are_closed_in_a_fresh_install(start_router: StartRouter) -> None:
    async with start_router() as router:
        for method, path in (
            ("PUT", "/internal/v1/agents/x"),
            ("PUT", "/internal/v1/agents/x/lease"),
            ("DELETE", "/internal/v1/agents/x/lease"),
            ("POST", "/internal/v1/agents/rotate"),
            ("POST", "/internal/v1/agents/confirm"),
        ):
            for headers in ({}, bearer("sk-anything")):
                answer = await router.client.request(method, path, json={}, headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        text = router.write(key())
        await router.catch_up()
        answer = await router.client.put("/internal/v1/agents/x", json={}, headers=bearer(text))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")


async def test_a_revoked_agent_is_unknown(start_router: StartRouter) -> None:
    async with start_router() as router:
        credential = router.write(lambda c: add_agent(c, "mac"))
        router.write(lambda c: revoke_agent(c, "mac"))
        await router.catch_up()
        answer = await router.client.put(
            "/internal/v1/agents/x", json={}, headers=bearer(credential)
        )
        assert answer.status_code == 401


def test_looking_up_a_key_takes_microseconds() -> None:
    text, found = made(Scope.INFERENCE)
    access = Access(fleet_with(found), RULES, frozenset())
    scope = scope_of(f"Bearer {text}".encode())
    started = time.perf_counter()
    for _ in range(1000):
        access.require(scope, Scope.INFERENCE)
    assert time.perf_counter() - started < 0.5
