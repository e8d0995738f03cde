"""What `iir-agent doctor` says of the router, the credential and the running agent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_agent.doctor.agent import examine_running, find_running
from local_agent.doctor.finding import Finding
from local_agent.doctor.router import examine_router
from local_agent.settings import load_settings
from shared.kit.clock import wall_time
from tests.shared.certificates import make_certificate, speak_tls

SECRET = "sk-iir-abcdefgh-very-secret"
READY = {"status": "ready", "registry": "ok", "agents": 0}


class StandInRouter:
    """A server that answers `/readyz` and `confirm` as it is told, and remembers who it saw."""

    def __init__(self) -> None:
        self.ready: tuple[int, Any] = (200, READY)
        self.confirmed: tuple[int, Any] = (200, {"name": "mac", "release": "1.0", "protocol": 1})
        self.seen: list[str | None] = []
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*router.ready)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                router.seen.append(self.headers["authorization"])
                self._answer(*router.confirmed)

            def _answer(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


@pytest.fixture
def router() -> Iterator[StandInRouter]:
    found = StandInRouter()
    with found.serving():
        yield found


@pytest.fixture
def credential(tmp_path: Path) -> Path:
    path = tmp_path / "agent" / "credential"
    path.parent.mkdir()
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def examined(home: Path, *, skew_s: float = 0.0, **settings: Any) -> list[Finding]:
    found = list(
        examine_router(load_settings(iir_home=home, **settings), lambda: wall_time() + skew_s)
    )
    assert SECRET not in repr(found)
    assert str(home) not in repr(found)
    return found


def only(findings: list[Finding], check: str) -> list[tuple[str, str]]:
    return [(found.level, found.message) for found in findings if found.check == check]


def test_all_is_well(tmp_path: Path, router: StandInRouter, credential: Path) -> None:
    found = examined(tmp_path, router_url=router.url)
    assert {finding.level for finding in found} == {"ok"}
    assert only(found, "credential") == [
        ("ok", "$IIR_HOME/agent/credential is there, readable by its owner only"),
        ("ok", f"{router.url} accepts it and calls this agent mac"),
    ]
    assert only(found, "protocol") == [("ok", "version 1 on both sides (router 1.0)")]


def test_no_credential(tmp_path: Path, router: StandInRouter) -> None:
    ((level, message),) = only(examined(tmp_path, router_url=router.url), "credential")
    assert level == "note"
    assert "no router knows this agent" in message
    (found,) = (f for f in examined(tmp_path, agent_host="0.0.0.0") if f.check == "credential")
    assert found.level == "problem"
    assert "refuses to start" in found.message
    assert "iir-agent join" in str(found.fix)
    assert router.seen == []


def test_a_credential_that_others_can_read(
    tmp_path: Path, router: StandInRouter, credential: Path
) -> None:
    credential.chmod(0o644)
    found = examined(tmp_path, router_url=router.url)
    assert only(found, "credential")[0] == (
        "problem",
        "others can read $IIR_HOME/agent/credential",
    )


def test_a_file_that_is_no_credential(
    tmp_path: Path, router: StandInRouter, credential: Path
) -> None:
    credential.write_text("a b c")
    found = examined(tmp_path, router_url=router.url)
    assert only(found, "credential") == [
        ("problem", "$IIR_HOME/agent/credential holds no readable credential")
    ]
    assert router.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_credential_that_is_refused(
    tmp_path: Path, router: StandInRouter, credential: Path, status: int
) -> None:
    router.confirmed = (status, {"error": {"message": "no"}})
    found = examined(tmp_path, router_url=router.url)
    level, message = only(found, "credential")[1]
    assert level == "problem"
    assert message.startswith(f"{router.url} refuses it")


def test_an_older_router(tmp_path: Path, router: StandInRouter, credential: Path) -> None:
    router.confirmed = (200, {"name": "mac"})
    ((level, message),) = only(examined(tmp_path, router_url=router.url), "protocol")
    assert (level, "older release" in message) == ("note", True)
    router.confirmed = (200, {"name": "mac", "protocol": 2})
    ((level, message),) = only(examined(tmp_path, router_url=router.url), "protocol")
    assert (level, "speaks version 2" in message) == ("problem", True)
    router.confirmed = (404, {})
    level, message = only(examined(tmp_path, router_url=router.url), "credential")[1]
    assert (level, "it said 404" in message) == ("note", True)


@pytest.mark.parametrize("ready", [(200, {"status": "ok"}), (404, {}), (200, [])])
def test_a_stranger_never_sees_the_credential(
    tmp_path: Path, router: StandInRouter, credential: Path, ready: tuple[int, Any]
) -> None:
    router.ready = ready
    ((level, message),) = only(examined(tmp_path, router_url=router.url), "router")
    assert (level, "is no router" in message) == ("problem", True)
    assert router.seen == []


def test_the_credential_goes_to_its_own_router(
    tmp_path: Path, router: StandInRouter, credential: Path
) -> None:
    credential.write_text(f"{SECRET}\nrouter={router.url}\n")
    assert {found.level for found in examined(tmp_path)} == {"ok"}
    assert router.seen == [f"Bearer {SECRET}"]
    found = examined(tmp_path, router_url="http://127.0.0.1:9")
    assert only(found, "credential")[1] == (
        "note",
        f"the credential is for {router.url}; ROUTER_URL is http://127.0.0.1:9 and beats it",
    )
    assert len(router.seen) == 1


def test_a_router_that_starts(tmp_path: Path, router: StandInRouter) -> None:
    router.ready = (503, {**READY, "status": "starting"})
    assert only(examined(tmp_path, router_url=router.url), "router") == [
        ("note", f"{router.url} is starting")
    ]


def test_nobody_is_there(tmp_path: Path, credential: Path) -> None:
    found = examined(tmp_path, router_url="http://127.0.0.1:9")
    assert only(found, "router") == [("problem", "http://127.0.0.1:9 can't be reached")]
    credential.unlink()
    ((level, _),) = only(examined(tmp_path, router_url="http://127.0.0.1:9"), "router")
    assert level == "note", "an agent without a credential needs no router"


def test_a_password_in_the_router_s_address_is_not_told(
    tmp_path: Path, router: StandInRouter
) -> None:
    found = examined(tmp_path, router_url=router.url.replace("//", "//me:made-up@"))
    assert "made-up" not in repr(found)
    assert only(found, "router") == [("ok", f"{router.url} is ready")]


def test_clocks_that_differ(tmp_path: Path, router: StandInRouter) -> None:
    assert only(examined(tmp_path, router_url=router.url, skew_s=20), "clock") == []
    ((level, message),) = only(examined(tmp_path, router_url=router.url, skew_s=-300), "clock")
    assert level == "note"
    assert "behind the router's" in message


def test_http_to_another_machine_is_said_to_be_readable(tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=READY))
    settings = load_settings(iir_home=tmp_path, router_url="http://router.lan:8000")
    found = list(examine_router(settings, wall_time, transport))
    assert only(found, "router")[0][0] == "note"
    assert "can be read on the way" in only(found, "router")[0][1]


def test_a_certificate_that_is_not_trusted(
    tmp_path: Path, router: StandInRouter, credential: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    speak_tls(router.server, (certificate, key))
    url = router.url.replace("http://127.0.0.1", "https://localhost")
    ((level, message),) = only(examined(tmp_path, router_url=url), "router")
    assert level == "problem"
    assert message.startswith(f"the certificate of {url} is not trusted: self")
    assert router.seen == []
    found = examined(tmp_path, router_url=url, router_ca_file=certificate)
    assert only(found, "router") == [("ok", f"{url} is ready")]
    ((level, message),) = only(
        examined(tmp_path, router_url=url, router_ca_file=tmp_path / "gone"), "router"
    )
    assert (level, message) == (
        "problem",
        "ROUTER_CA_FILE can't be read: No such file or directory",
    )


def test_tls_to_a_router_without_it(tmp_path: Path, router: StandInRouter) -> None:
    url = router.url.replace("http:", "https:")
    assert only(examined(tmp_path, router_url=url), "router") == [
        ("problem", f"{url} does not speak TLS as expected")
    ]


# -- the running agent ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease", "level"),
    [
        ("held", "ok"),
        ("no_credential", "note"),
        ("router_away", "problem"),
        ("refused", "problem"),
        ("superseded", "problem"),
        ("something new", "note"),
    ],
)
def test_the_lease_of_the_running_agent(router: StandInRouter, lease: str, level: str) -> None:
    router.ready = (200, {"status": "ready", "lease": lease, "config": "ok"})
    state = find_running(["http://127.0.0.1:9", router.url])
    agent, found = examine_running(state)
    assert agent == Finding("agent", "ok", f"it runs at {router.url}")
    assert (found.check, found.level) == ("lease", level)
    router.ready = (200, {"status": "ready", "lease": lease, "lease_problem": "timeout"})
    _, found = examine_running(find_running([router.url]))
    assert found.message.endswith(" (timeout)")


def test_a_running_agent_that_keeps_an_earlier_configuration(router: StandInRouter) -> None:
    router.ready = (200, {"status": "ready", "lease": "held", "config": "agent.yaml, line 3: no"})
    *_, found = examine_running(find_running([router.url]))
    assert (found.check, found.level) == ("configuration", "problem")
    assert "agent.yaml, line 3: no" in found.message


@pytest.mark.parametrize("ready", [(200, READY), (200, []), (404, {})])
def test_another_server_is_no_agent(router: StandInRouter, ready: tuple[int, Any]) -> None:
    router.ready = ready
    (found,) = examine_running(find_running([router.url]))
    assert found == Finding("agent", "note", "no agent runs here", "iir-agent serve")
