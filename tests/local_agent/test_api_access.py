"""Who may use the agent: programs here, its router from elsewhere, and no web page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import httpx
from fastapi.routing import APIRoute
from starlette.types import Message, Scope

from local_agent.api.access import _MARK, AgentAccess, Need
from local_agent.app import FRAMEWORK_PATHS, Agent
from local_agent.config_file import load_config
from local_agent.settings import load_settings
from shared.http.origin import OriginRules
from tests.local_agent.harness import CHAT, MESSAGES, StartAgent

BODY = {"model": "tiny", "messages": MESSAGES}
RULES = OriginRules("127.0.0.1", "AGENT_HOST")
RESIDENCY = [f"/internal/models/tiny/{verb}" for verb in ("load", "unload", "pin", "unpin", "plan")]
EVIL = "https://evil.example"


PAGES: list[tuple[dict[str, str], str]] = [
    ({"origin": EVIL}, "cross_site_request"),
    ({"origin": "null"}, "cross_site_request"),
    ({"origin": "http://127.0.0.1:1"}, "cross_site_request"),
    ({"sec-fetch-site": "cross-site"}, "cross_site_request"),
    ({"sec-fetch-site": "same-site"}, "cross_site_request"),
    ({"host": "evil.example"}, "host_not_allowed"),
    ({"host": "127.0.0.1.evil.example"}, "host_not_allowed"),
    ({"host": "127.0.0.1@evil.example"}, "host_not_allowed"),
    ({"host": "169.254.169.254"}, "host_not_allowed"),
]


async def test_a_web_page_is_refused(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for headers, code in PAGES:
            for method, path in [
                ("POST", CHAT),
                ("POST", "/infer"),
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("POST", "/internal/reload"),
                ("GET", "/internal/workers"),
                ("GET", "/internal/doctor"),
                *(("POST", path) for path in RESIDENCY),
            ]:
                request: dict[str, Any] = {"json": BODY} if method == "POST" else {}
                answer = await agent.client.request(method, path, headers=headers, **request)
                found = (answer.status_code, answer.json()["error"]["code"])
                assert found == (403, code), (path, headers)
                assert "access-control-allow-origin" not in answer.headers
        assert [seen for seen in agent.engine.requests if seen.method == "POST"] == []


async def test_what_a_page_may_send_without_asking_is_refused(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; b=x"):
            headers = {"content-type": kind}
            for path in (CHAT, "/infer", "/internal/reload"):
                answer = await agent.client.post(path, content=b"{}", headers=headers)
                assert answer.status_code == 415, (kind, path)
        preflight = {"origin": EVIL, "access-control-request-method": "POST"}
        answer = await agent.client.options(CHAT, headers=preflight)
        assert answer.status_code >= 400
        assert "access-control-allow-origin" not in answer.headers


async def test_programs_on_this_machine_are_served(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        own = agent.base_url
        for headers in (
            {},
            {"origin": own},
            {"sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
        ):
            answer = await agent.client.post(CHAT, json=BODY, headers=headers)
            assert answer.status_code == 200, headers
        port = own.rsplit(":", 1)[1]
        for host in (f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "127.0.0.1"):
            answer = await agent.client.get("/v1/models", headers={"host": host})
            assert answer.status_code == 200, host


class Stage:
    """The agent's application as it is called for connections from anywhere."""

    def __init__(self, **settings_: str) -> None:
        settings = load_settings(**{"agent_host": "192.168.1.5", **settings_})
        self.agent = Agent(settings, load_config(None, {}), 5000)
        self.app = self.agent.asgi()
        self.token = self.agent.identity.access_token

    async def status(
        self,
        method: str,
        path: str,
        *,
        client: tuple[str, int] | None = ("192.168.1.9", 40000),
        token: str | None = None,
        host: str = "192.168.1.5:5000",
    ) -> int:
        """Return the status of a request from `client`."""
        headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
        if token is not None:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": client,
            "server": ("192.168.1.5", 5000),
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        status: int = sent[0]["status"]
        return status


OPEN = ["/health", "/livez", "/readyz"]
DATA = [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", CHAT), ("POST", "/infer")]
CONTROL = [
    ("GET", "/internal/workers"),
    ("GET", "/internal/doctor"),
    ("POST", "/internal/reload"),
    *(("POST", path) for path in RESIDENCY),
]


async def test_callers_from_elsewhere_need_the_access_token() -> None:
    stage = Stage()
    for method, path in DATA + CONTROL:
        for token in (None, "", "wrong", stage.token[:-1], stage.token + "x"):
            assert await stage.status(method, path, token=token) == 401, (path, token)
        assert await stage.status(method, path, client=None) == 401
    for path in OPEN:
        assert await stage.status("GET", path) in {200, 503}
    found = [await stage.status(method, path, token=stage.token) for method, path in DATA]
    assert found == [200, 200, 400, 400]  # let in: the two empty bodies are the problem


async def test_the_figures_can_be_made_public_and_nothing_else_with_them() -> None:
    stage = Stage(agent_public_routes="Metrics, health, ")
    for token in (None, "wrong", stage.token):
        assert await stage.status("GET", "/metrics", token=token) == 200
    for method, path in DATA + CONTROL:
        if path != "/metrics":
            assert await stage.status(method, path) == 401, path
    assert await stage.status("GET", "/metrics", host="evil.example") == 403


async def test_the_agent_is_controlled_from_its_own_machine_only() -> None:
    stage = Stage()
    for method, path in CONTROL:
        assert await stage.status(method, path, token=stage.token) == 403


async def test_one_local_end_does_not_make_a_connection_local() -> None:
    """A forwarded port shows a loopback client at a network address, or the reverse."""
    stage = Stage()
    assert await stage.status("GET", "/v1/models", client=("127.0.0.1", 40000)) == 401


async def test_the_token_is_the_router_s_also_where_pages_are_refused(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        headers = {"authorization": f"Bearer {agent.agent.identity.access_token}"}
        answer = await agent.client.get("/v1/models", headers={**headers, "origin": EVIL})
        assert answer.status_code == 200
        answer = await agent.client.post("/internal/reload", headers=headers)
        assert answer.status_code == 200
        assert agent.agent.identity.access_token not in repr(agent.agent.identity)


def every_route(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Yield the routes of an application; FastAPI keeps an included router as one entry."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from every_route(getattr(route, "original_router", route).routes)


def test_every_route_says_what_it_needs() -> None:
    stage = Stage()
    app = stage.agent.control_app(AgentAccess(RULES, stage.token))
    routes = list(every_route(app.routes))
    assert len(routes) >= 8
    for route in routes:
        need, _ = getattr(route.endpoint, _MARK)
        assert isinstance(need, Need), route.path
        assert route.path.startswith(FRAMEWORK_PATHS), "others are not handed to the framework"
    open_to_all = {
        plain.path for plain in stage.agent.plain_routes() if plain.needed is Need.NOTHING
    }
    assert open_to_all == {"/health", "/livez", "/readyz"}


async def test_a_route_without_a_mark_is_open_to_nobody() -> None:
    stage = Stage()
    app = stage.agent.control_app(AgentAccess(RULES, stage.token))

    @app.get("/forgotten")
    async def forgotten() -> str:
        return "served"

    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/errors/not_found")).status_code == 200
        assert (await client.get("/forgotten")).status_code == 403


async def test_the_name_in_its_url_is_the_agents_own_and_no_other() -> None:
    stage = Stage(agent_host="0.0.0.0", agent_url="http://agent:5000")
    for host, status in (("agent:5000", 200), ("agent.evil.example:5000", 403), ("other", 403)):
        assert await stage.status("GET", "/health", host=host) == status, host
        answered = await stage.status("GET", "/v1/models", token=stage.token, host=host)
        assert answered == status, host


async def test_a_refused_host_is_told_which_setting_names_it(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        answer = await agent.client.get("/v1/models", headers={"host": "mac.lan"})
        message = answer.json()["error"]["message"]
        assert "or set AGENT_URL to the URL with this name" in message
        page = await agent.client.get("/errors/host_not_allowed")
        assert "ROUTER_ALLOWED_HOSTS" in page.text
        assert "AGENT_URL" in page.text
