"""`iir-agent join` and `rotate` against a stand-in router on loopback: what is kept, sent and said."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from local_agent.app import Agent
from local_agent.cli.app import app
from local_agent.config import AgentConfig
from local_agent.control import joining
from local_agent.control.credential import (
    Credential,
    is_same_router,
    load_credential,
    save_credential,
)
from local_agent.control.joining import travels_in_the_clear
from local_agent.settings import load_settings

TOKEN = "iir-join-abcdefgh-secretsecret"
Run = Callable[..., Result]


class StandInRouter:
    """Answers each POST with the next scripted answer, else with a fresh credential."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None, dict[str, str]]] = []
        self.script: list[tuple[int, object]] = []
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                what = self.path.rsplit("/", 1)[1]
                router.seen.append((what, self.headers["authorization"], body))
                grant = {"name": "mac", "credential": f"sk-iir-number-{len(router.seen):08}"}
                status, answer = router.script.pop(0) if router.script else (200, grant)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("location", "http://127.0.0.1:9/elsewhere")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def asked(self) -> list[str]:
        return [what for what, _, _ in self.seen]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRouter]:
    monkeypatch.setattr(joining, "_PAUSE_S", 0.001)
    found = StandInRouter()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "agent" / "credential"


@pytest.fixture
def run(path: Path) -> Run:
    def invoke(*words: str, entry: str | None = None, code: int = 0) -> Result:
        result = CliRunner().invoke(app, words, input=entry)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert TOKEN not in result.output
        assert "sk-iir-" not in result.output
        return result

    return invoke


def test_join_keeps_the_credential_before_it_is_used(
    router: StandInRouter, run: Run, path: Path
) -> None:
    said = run("join", router.url, "-", "--name", "mac", entry=TOKEN + "\n").output
    assert load_credential(path) == Credential("sk-iir-number-00000001", router.url)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["credential"]
    join, confirm = router.seen
    assert join == ("join", None, {"token": TOKEN, "name": "mac"})
    assert confirm[:2] == ("confirm", "Bearer sk-iir-number-00000001")
    assert f"joined {router.url} as mac" in said
    assert "$IIR_HOME/agent/credential" in said
    assert "Next: `iir-agent serve`" in said


def test_the_token_comes_from_argument_or_environment_too(
    router: StandInRouter, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("join", router.url, TOKEN)
    monkeypatch.setenv("IIR_JOIN_TOKEN", TOKEN)
    run("join", router.url)
    tokens = [body["token"] for what, _, body in router.seen if what == "join"]
    assert tokens == [TOKEN, TOKEN]
    assert (
        router.seen[2][1] == "Bearer sk-iir-number-00000001"
    ), "joining again shows the present one"
    monkeypatch.delenv("IIR_JOIN_TOKEN")
    assert "IIR_JOIN_TOKEN" in run("join", router.url, code=2).output
    assert "no join token" in run("join", router.url, "-", entry="\n", code=1).output


def test_another_router_s_credential_is_neither_overwritten_nor_shown(
    router: StandInRouter, run: Run, path: Path
) -> None:
    before = Credential("sk-iir-of-another", "https://other:8000")
    save_credential(path, before)
    assert "https://other:8000" in run("join", router.url, TOKEN, code=1).output
    assert load_credential(path) == before
    assert router.seen == []
    run("join", router.url, TOKEN, "--replace")
    assert router.seen[0][1] is None
    assert load_credential(path) == Credential("sk-iir-number-00000001", router.url)


def test_a_file_that_holds_something_else_is_kept(
    router: StandInRouter, run: Run, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("my diary")
    assert "--replace" in run("join", router.url, TOKEN, code=1).output
    assert path.read_text() == "my diary"
    run("join", router.url, TOKEN, "--replace")


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, {"error": {"message": "was used already"}}, "said no (401): was used already"),
        (404, {"error": {"message": "no route"}}, "older than this agent"),
        (502, "bad gateway", "is no router (it said 502)"),
        (307, {}, "is no router (it said 307)"),
        (200, {"name": "mac"}, "no router of this release"),
        (200, {"name": "mac", "credential": "two\nlines-and-more-letters"}, "no router of this"),
    ],
)
def test_what_a_router_refuses_changes_nothing(
    router: StandInRouter, run: Run, path: Path, status: int, answer: object, said: str
) -> None:
    save_credential(path, Credential("sk-iir-present", router.url))
    for words in (("join", router.url, TOKEN), ("rotate",)):
        router.script = [(status, answer)]
        assert said in " ".join(run(*words, code=1).output.split())
    assert load_credential(path) == Credential("sk-iir-present", router.url)
    assert router.asked() == ["join", "rotate"]


def test_a_credential_that_has_ended_is_not_taken_for_a_users_key(
    router: StandInRouter, run: Run, path: Path
) -> None:
    save_credential(path, Credential("sk-iir-present", router.url))
    router.script = [(401, {"error": {"message": "List keys", "code": "invalid_api_key"}})]
    said = " ".join(run("rotate", code=1).output.split())
    assert "revoked or replaced" in said
    assert "iir agents invite" in said
    assert "keys" not in said


@pytest.mark.parametrize(
    "url", ["8000", "ftp://h", "http://", "http://u:p@h", "http://h/?q=1", "a b"]
)
def test_what_is_no_address_is_said(run: Run, url: str) -> None:
    assert "must read like" in run("join", url, TOKEN, code=2).output


def test_a_router_that_is_away_is_said(run: Run, path: Path) -> None:
    assert (
        "can't be reached (no connection)"
        in run("join", "http://127.0.0.1:1", TOKEN, code=1).output
    )
    assert not path.exists()


def test_rotation_keeps_the_new_one_and_whose_it_is(
    router: StandInRouter, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "iir-agent join" in run("rotate", code=1).output
    save_credential(path, Credential("sk-iir-present", None))  # as `iir agents add` makes it
    monkeypatch.setenv("ROUTER_URL", router.url)
    run("rotate")
    assert router.seen[0][:2] == ("rotate", "Bearer sk-iir-present")
    assert load_credential(path) == Credential("sk-iir-number-00000001", None)


def test_a_router_that_does_not_confirm_yet_is_asked_again_and_then_said(
    router: StandInRouter, run: Run, path: Path
) -> None:
    grant = {"name": "mac", "credential": "sk-iir-number-new-one"}
    router.script = [(200, grant), *[(401, {})] * 3]
    assert "did not confirm" not in run("join", router.url, TOKEN).output
    assert router.asked() == ["join"] + ["confirm"] * 4
    router.script = [(200, grant), *[(401, {})] * 99]
    assert "did not confirm it yet" in run("rotate").output
    assert load_credential(path) == Credential("sk-iir-number-new-one", router.url)


def test_a_folder_that_can_t_be_written_is_said(
    router: StandInRouter, run: Run, path: Path
) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("in the way")
    assert "can't be kept" in run("join", router.url, TOKEN, code=1).output
    assert router.asked() == ["join"], "what could not be kept is not used"


def test_a_router_url_that_beats_the_joined_one_is_said(
    router: StandInRouter, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_URL", "http://127.0.0.1:9")
    assert "ROUTER_URL names another router" in run("join", router.url, TOKEN).output


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://192.168.1.5:8000", True),
        ("http://router.local", True),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", False),
        ("https://192.168.1.5:8000", False),
    ],
)
def test_what_travels_in_the_clear(run: Run, url: str, expected: bool) -> None:
    assert travels_in_the_clear(url) is expected


def test_the_same_router_is_known_by_its_url() -> None:
    assert is_same_router("https://Host", "https://host:443/")
    assert not is_same_router("https://host", "http://host")
    assert not is_same_router("http://host:1", "http://host:2")
    assert not is_same_router("http://host/a", "http://host/b")


async def test_an_agent_turns_to_the_router_that_it_has_joined(path: Path) -> None:
    save_credential(path, Credential("sk-iir-one", "https://one:1"))
    for told, expected in ((None, "https://one:1"), ("http://127.0.0.1:2", "http://127.0.0.1:2")):
        settings = load_settings(router_url=told)
        agent = Agent(settings, AgentConfig(models=(), labels={}), 5000)
        assert agent._credential() == "sk-iir-one"
        assert str(agent._router.base_url).rstrip("/") == expected
        await agent._router.aclose()
        await agent._transport.aclose()
