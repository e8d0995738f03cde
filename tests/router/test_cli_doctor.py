"""`iir doctor`: each finding, and its fix."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.cli.doctor import Finding, examine
from router.cli.router_probe import Answer, probe_router
from router.domain import Scope
from router.settings import Settings, load_settings
from router.store import agents, keys
from router.store.seed import read_seed, seed
from router.store.writer import RegistryWriter
from shared.contracts.agents import AgentModel, Registration
from shared.kit.run_file import announced
from tests.threaded import answering

NOW = 2_000_000_000.0


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    for name in ("SQLITE_DB_PATH", "DATABASE_URL", "EXTERNAL_OPENAI_KEY", "ROUTER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROUTER_PORT", "0")
    return load_settings()


def findings(settings: Settings, answer: Answer | None = None) -> dict[str, Finding]:
    found = examine(settings, now=NOW, ask=lambda *_: answer or Answer("ready"))
    return {finding.check: finding for finding in found}


def levels(settings: Settings) -> dict[str, str]:
    return {check: finding.level for check, finding in findings(settings).items()}


def test_without_a_registry(settings: Settings) -> None:
    found = findings(settings)
    assert list(found) == ["registry", "router"]
    assert (found["registry"].level, found["registry"].fix) == ("error", "iir migrate")


def test_older_registry(settings: Settings, writer: RegistryWriter) -> None:
    writer.run_sync(lambda c: c.exec_driver_sql("DROP TABLE alembic_version"))
    assert findings(settings)["registry"].level == "error"


def test_damaged_registry(settings: Settings, writer: RegistryWriter) -> None:
    writer.run_sync(lambda c: seed(c, read_seed()))
    writer.close()
    path = settings.iir_home / "models.db"
    content = bytearray(path.read_bytes())
    # The pages behind the first hold the tables; the header stays that of a database.
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    found = findings(settings)["registry"]
    assert found.level == "error"
    assert "SQLITE_DB_PATH" in found.message


def test_empty_registry(settings: Settings, writer: RegistryWriter) -> None:
    assert levels(settings) == {
        "registry": "ok",
        "catalog": "warning",
        "keys": "ok",
        "agents": "warning",
        "router": "ok",
    }
    assert findings(settings)["catalog"].fix == "iir seed"
    writer.run_sync(lambda c: seed(c, read_seed()))
    assert "no models" in findings(settings)["catalog"].message


def test_provider_credentials(
    settings: Settings, writer: RegistryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.run_sync(lambda c: seed(c, read_seed()))
    found = findings(settings)
    assert "provider local" not in found
    assert found["provider openai"].level == "warning"
    assert "EXTERNAL_OPENAI_KEY" in (found["provider openai"].fix or "")
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", "sk-secret")
    found = findings(settings)
    assert found["provider openai"].level == "ok"
    assert "sk-secret" not in str(found)


def test_open_mode(settings: Settings, writer: RegistryWriter) -> None:
    assert "open" in findings(settings)["keys"].message
    exposed = settings.model_copy(update={"router_host": "0.0.0.0"})
    found = findings(exposed)["keys"]
    assert (found.level, found.fix) == ("error", "iir keys create --name NAME")
    writer.run_sync(lambda c: agents.add_agent(c, "mac"))
    writer.run_sync(lambda c: keys.create_key(c, "laptop", {Scope.INFERENCE}))
    assert findings(exposed)["keys"] == Finding("keys", "ok", "keys in force: 1")
    writer.run_sync(lambda c: keys.revoke_key(c, "laptop"))
    assert findings(exposed)["keys"].level == "warning"


def test_agents(settings: Settings, writer: RegistryWriter) -> None:
    for name in ("fresh", "stale", "new", "banned"):
        writer.run_sync(lambda c, name=name: agents.add_agent(c, name))  # type: ignore[misc]  # bound now
    writer.run_sync(lambda c: agents.revoke_agent(c, "banned"))
    registration = Registration(
        incarnation=1,
        name="x",
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=(AgentModel(id="smol"), AgentModel(id="big")),
    )
    ages = {"fresh": 10.0, "stale": 61.0}
    for info in writer.run_sync(agents.list_agents):
        age = ages.get(info.record.name)
        if age is not None:
            writer.run_sync(
                lambda c, row=info.record.row_id, age=age: agents.save_registration(  # type: ignore[misc]  # bound now
                    c, row, f"id-{row}", registration, f"l-{row}", now=lambda: NOW - age
                )
            )
    found = findings(settings)
    assert found["agent fresh"].level == "ok"
    assert found["agent stale"].message == "lease expired"
    assert found["agent new"].message == "never registered"
    assert "iir-agent serve" in (found["agent new"].fix or "")
    assert "agent banned" not in found
    writer.run_sync(lambda c: seed(c, read_seed()))
    assert findings(settings)["catalog"].message.endswith("4 of agents")


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        (Answer("ready"), "ok", "ready on port 8123"),
        (Answer("unready"), "warning", "starting or draining"),
        (Answer("nobody"), "warning", "nothing answers on port 8123"),
        (Answer("stranger"), "error", "another program has port 8123"),
        (Answer("ready", "it is locked"), "error", "it is locked"),
    ],
)
def test_router(settings: Settings, answer: Answer, level: str, text: str) -> None:
    on_port = settings.model_copy(update={"router_port": 8123})
    found = findings(on_port, answer)["router"]
    assert found.level == level
    assert text in found.message
    assert found.fix is not None or level == "ok"


@pytest.mark.parametrize("configured", ["nobody", "stranger"])
def test_a_router_on_another_port_is_found_by_what_it_wrote(
    settings: Settings, configured: str
) -> None:
    on_port = settings.model_copy(update={"router_port": 8123})
    asked: list[tuple[str, int]] = []
    answers = {8123: Answer(configured), 8321: Answer("ready")}  # type: ignore[arg-type]  # a kind

    def ask(host: str, port: int) -> Answer:
        asked.append((host, port))
        return answers[port]

    def look(settings: Settings) -> Finding:
        return list(examine(settings, now=NOW, ask=ask))[-1]

    with announced(settings.iir_home / "run" / "router.json", host="::1", port=8321):
        found = look(on_port)
        assert (found.level, "ready on port 8321" in found.message) == ("ok", True)
        assert asked == [("127.0.0.1", 8123), ("::1", 8321)]
        assert "ready on port 8321" in look(settings).message
        answers[8321] = Answer("nobody")  # it was killed
        assert "port 8123" in look(on_port).message
        assert look(settings).message.startswith("ROUTER_PORT is 0")


def test_command_exits_1_on_errors_only(writer: RegistryWriter, settings: Settings) -> None:
    good = CliRunner().invoke(app, ["doctor", "--json"])
    assert good.exit_code == 0, good.output
    assert {f["check"] for f in json.loads(good.stdout)} >= {"registry", "keys", "router"}
    writer.close()
    (settings.iir_home / "models.db").unlink()
    bad = CliRunner().invoke(app, ["doctor"])
    assert bad.exit_code == 1
    assert "iir migrate" in bad.stdout


# ── asking the port ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, b'{"status": "ready", "registry": "ok"}', Answer("ready")),
        (503, b'{"status": "draining", "registry": "ok"}', Answer("unready")),
        (200, b'{"status": "ready", "registry": "gone"}', Answer("ready", "gone")),
        (404, b'{"status": "ready", "registry": "ok"}', Answer("stranger")),
        (200, b"[]", Answer("stranger")),
        (200, b"{}", Answer("stranger")),
        (200, b"<html>", Answer("stranger")),
    ],
)
def test_probe_tells_routers_from_strangers(status: int, body: bytes, answer: Answer) -> None:
    def respond(asked: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        assert asked.path == "/readyz"
        return status, body

    with answering(respond) as port:
        assert probe_router("0.0.0.0", port) == answer


def test_probe_finds_nobody_and_programs_without_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"220 mail here\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        assert probe_router("127.0.0.1", port) == Answer("stranger")
        thread.join()
    assert probe_router("127.0.0.1", port) == Answer("nobody")
    assert probe_router("::1", port) == Answer("nobody")
