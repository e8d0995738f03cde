"""`iir providers refresh`: against a recorded answer, and against providers that misbehave."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import vcr
from typer.testing import CliRunner

from router.cli import app, upstream_models
from router.settings import load_settings
from router.store import agents
from router.store.writer import RegistryWriter
from shared.contracts.agents import AgentModel, Registration
from tests.threaded import served_by

CASSETTES = Path(__file__).parent / "cassettes"
KEY = "sk-made-up-for-this-test"


@dataclass
class Upstream:
    """A provider on loopback that answers every GET alike, and notes what it was sent."""

    port: int = 0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"object": "list", "data": [{"id": "m-1"}]}'
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.seen.append((self.path, self.headers.get("authorization")))
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, *_: Any) -> None:
            pass

    with served_by(Handler) as found.port:
        yield found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    for name in ("SQLITE_DB_PATH", "DATABASE_URL", "EXTERNAL_OPENAI_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    run("migrate")
    run("seed")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert KEY not in result.output
    return result.output


def add(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", KEY)
    run("providers", "add", "acme", "--base-url", upstream.url, "--key-env", "ACME_KEY")


def model_ids() -> list[str]:
    return [row["id"] for row in json.loads(run("models", "list", "--json"))]


# vcrpy leaves the cassette's file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_openais_models_are_added_without_touching_names_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", KEY)
    run("models", "add", "mine", "--provider", "local", "--alias", "taken")
    writer = RegistryWriter(load_settings().store_url)
    writer.run_sync(lambda c: agents.add_agent(c, "mac"))
    registration = Registration(
        incarnation=1,
        name="mac",
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=(AgentModel(id="smol", aliases=("private",)),),
    )
    writer.run_sync(lambda c: agents.save_registration(c, 1, "id-1", registration, "l1"))
    writer.close()
    sent: list[Any] = []

    def note(request: Any) -> Any:
        sent.append(request)
        return request

    recorder = vcr.VCR(record_mode="none", before_record_request=note)
    with recorder.use_cassette(str(CASSETTES / "openai_models.yaml")) as cassette:
        output = run("providers", "refresh", "openai")
        assert cassette.play_count == 1
    assert output == "models added: 2; left out, their names are in use: 2\n"
    assert sent[-1].headers["authorization"] == f"Bearer {KEY}"
    assert set(model_ids()) == {"gpt-4o-mini", "text-embedding-3-small", "mine", "smol"}


def test_asks_below_v1_with_the_credential(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(upstream, monkeypatch)
    assert run("providers", "refresh", "acme") == "models added: 1\n"
    assert upstream.seen == [("/v1/models", f"Bearer {KEY}")]
    assert model_ids() == ["m-1"]
    assert run("providers", "refresh", "acme").startswith("models added: 0; left out")


def test_provider_without_credential_is_asked_without(upstream: Upstream) -> None:
    run("providers", "add", "lan", "--base-url", f"{upstream.url}/api/v1", "--zone", "local")
    run("providers", "refresh", "lan")
    assert upstream.seen == [("/api/v1/models", None)]


def test_openai_base_url_setting_beats_the_registry(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    run("providers", "refresh", "openai")
    assert upstream.seen == [("/v1/models", f"Bearer {KEY}")]


def test_redirects_are_not_followed(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    add(upstream, monkeypatch)
    upstream.status = 302
    upstream.headers = {"location": f"{upstream.url}/elsewhere"}
    assert "redirect" in run("providers", "refresh", "acme", code=1)
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"{}", "did not accept the credential (401)"),
        (403, b"{}", "did not accept the credential (403)"),
        (500, b"{}", "status 500"),
        (200, b"<html>", "no list of models"),
        (200, b"[]", "no list of models"),
        (200, b'{"data": null}', "no list of models"),
        (200, b'{"data": [{"name": "x"}]}', "no list of models"),
        (200, b"[" * 50_000, "no list of models"),
        (200, b'{"data": [' + b" " * 2048 + b"]}", "too much"),
    ],
)
def test_answers_that_are_no_list(
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    message: str,
) -> None:
    add(upstream, monkeypatch)
    monkeypatch.setattr(upstream_models, "_MOST_BYTES", 51_000 if len(body) > 50_000 - 1 else 1024)
    upstream.status, upstream.body = status, body
    assert message in run("providers", "refresh", "acme", code=1)
    assert model_ids() == []


def test_providers_that_cannot_be_asked(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "set EXTERNAL_OPENAI_KEY" in run("providers", "refresh", "openai", code=1)
    assert "no list of models" in run("providers", "refresh", "local", code=1)
    assert "no provider" in run("providers", "refresh", "nobody", code=2)
    run("providers", "add", "away", "--base-url", "http://127.0.0.1:1", "--zone", "local")
    assert "can't be reached" in run("providers", "refresh", "away", code=1)


def test_slow_provider_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_models, "_TIMEOUT_S", 0.03)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run("providers", "add", "slow", "--base-url", url, "--zone", "local")
        assert "did not answer in 0.03 s" in run("providers", "refresh", "slow", code=1)
