"""`iir` commands for keys, agents and invitations, through Typer's runner."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.cli import joining as cli_joining
from router.domain import Scope
from router.settings import load_settings
from router.store import agents, keys
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter
from shared.contracts.agents import AgentModel, Capacity, Heartbeat, Power
from tests.router.command_line import Iir, from_json, register

pytestmark = pytest.mark.usefixtures("home")

# ── keys ─────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_shown_once_and_revoked(iir: Iir) -> None:
    key = iir("keys", "create", "--name", "laptop", "--quiet").strip()
    prefix = keys.parse_prefix(key)
    assert prefix is not None
    made = from_json(iir("keys", "create", "--name", "ops", "--scope", "admin", "--json"))
    assert made["scopes"] == ["admin"]
    assert keys.parse_prefix(made["key"]) == made["prefix"]
    listed = iir("keys", "list") + iir("keys", "list", "--json")
    assert prefix in listed
    assert key not in listed
    assert made["key"] not in listed
    iir("keys", "revoke", prefix)
    found = {k["name"]: k["revoked_at"] for k in from_json(iir("keys", "list", "--json"))}
    assert found["laptop"] is not None
    assert found["ops"] is None
    assert "no key in force" in iir("keys", "revoke", prefix, code=2)


def test_first_key_says_that_it_ends_open_mode() -> None:
    first = CliRunner().invoke(app, ["keys", "create", "--name", "a"])
    assert "sk-iir-" in first.stdout
    assert "without a key" in first.stderr
    assert "without a key" not in CliRunner().invoke(app, ["keys", "create", "--name", "b"]).stderr


def test_scope_agent_makes_an_agents_credential(iir: Iir) -> None:
    credential = iir("keys", "create", "--name", "mac", "--scope", "agent", "--quiet").strip()
    reader = RegistryReader(load_settings().store_url)
    catalog = reader.catalog()
    reader.close()
    assert catalog is not None
    assert catalog.is_open
    assert catalog.keys[keys.parse_prefix(credential) or ""].scopes == {Scope.AGENT}
    listed = iir("keys", "list")
    assert listed.startswith("no keys")
    assert "agents' credentials in force: 1; see `iir agents list`" in listed
    for which in ("mac", keys.parse_prefix(credential) or "", credential):
        refused = iir("keys", "revoke", which, code=2)
        assert "`iir agents revoke mac` ends it" in refused
        assert credential not in refused
    iir("agents", "revoke", credential)
    assert "no key in force" in iir("keys", "revoke", "mac", code=2)
    assert "agents" not in iir("keys", "list")
    made = CliRunner().invoke(app, ["keys", "create", "--name", "nas", "--scope", "agent"])
    assert "`iir agents list`" in made.stderr
    assert "`iir agents revoke nas`" in made.stderr
    both = ("--scope", "agent", "--scope", "admin")
    assert "alone" in iir("keys", "create", "--name", "x", *both, code=2)


# ── agents ───────────────────────────────────────────────────────────────────────────────────


def test_agents_add_is_idempotent_and_heals(iir: Iir, home: Path, tmp_path: Path) -> None:
    token = tmp_path / "agent" / "credential"
    add = ("agents", "add", "mac", "--token-file", str(token))
    iir(*add)
    credential = token.read_text()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [path.name for path in token.parent.iterdir()] == ["credential"]
    token.chmod(0o644)
    iir(*add)
    assert token.read_text() == credential
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    # The host has another name now: it is the same agent.
    assert "agent mac " in iir("agents", "add", "mac-2", "--token-file", str(token))

    # The registry lost the credential: it is registered again, and the file stays.
    for path in home.glob("models.db*"):
        path.unlink()
    iir(*add)
    assert token.read_text() == credential
    [found] = from_json(iir("agents", "list", "--json"))
    assert found["key_prefix"] == keys.parse_prefix(credential.strip())

    # The file is gone: only when asked for is the old credential ended.
    token.unlink()
    assert "--renew" in iir(*add, code=2)
    assert not token.exists()
    iir(*add, "--renew")
    assert token.read_text() != credential
    [found] = from_json(iir("agents", "list", "--json"))
    assert found["key_prefix"] == keys.parse_prefix(token.read_text().strip())


def test_token_files_that_do_not_work(iir: Iir, tmp_path: Path) -> None:
    token = tmp_path / "credential"
    add = ("agents", "add", "mac", "--token-file")
    token.write_text("my diary")
    assert "holds no credential" in iir(*add, str(token), code=1)
    assert token.read_text() == "my diary"
    assert "can't be read" in iir(*add, str(tmp_path), code=1)
    assert "can't be" in iir(*add, str(token / "below"), code=1)
    # One may read a name of this length, but not write beside it.
    assert "can't be written" in iir(*add, str(tmp_path / ("x" * 250)), code=1)
    assert {path.name for path in tmp_path.iterdir()} == {"credential", "home"}
    assert "agent's name" in iir("agents", "add", "a b", "--token-file", str(token), code=2)


def test_agents_are_listed_and_revoked(iir: Iir, writer: RegistryWriter) -> None:
    assert "no agents" in iir("agents", "list")
    row_id = register(writer, "mac", AgentModel(id="smol"), at=1e12)
    register(writer, "late", at=1.0)
    writer.run_sync(lambda c: agents.add_agent(c, "new"))
    states = {a["name"]: a["state"] for a in from_json(iir("agents", "list", "--json"))}
    assert states == {"mac": "ready", "late": "lease expired", "new": "never registered"}
    capacity = Capacity(budget_bytes=3 * 2**30, free_bytes=2**30)
    heartbeat = Heartbeat(
        lease_id="lease-mac",
        incarnation=1,
        seq=1,
        state="draining",
        capacity=capacity,
        power=Power(source="battery", battery_percent=9),
        reason="the battery is at 9 %",
    )
    writer.run_sync(
        lambda c: agents.save_heartbeats(c, [(row_id, "lease-mac", heartbeat)], now=lambda: 1e10)
    )
    listed = iir("agents", "list")
    assert "draining: the battery is at 9 %" in " ".join(listed.split())
    assert "1.0 of 3.0 GiB" in listed
    told = {a["name"]: a["capacity"] for a in from_json(iir("agents", "list", "--json"))}
    assert told == {"mac": capacity.model_dump(), "late": None, "new": None}
    power = {a["name"]: a["power"] for a in from_json(iir("agents", "list", "--json"))}
    assert power["mac"]["battery_percent"] == 9
    assert power["late"] is None
    writer.run_sync(lambda c: agents.release_lease(c, row_id))
    assert "lease given back" in iir("agents", "list")
    iir("agents", "revoke", "mac")
    assert "revoked" in iir("agents", "list")
    assert "no agent in force" in iir("agents", "revoke", "mac", code=2)


def test_an_invitation_is_shown_once_listed_and_withdrawn(iir: Iir) -> None:
    token = iir("agents", "invite", "--name", "mac", "--expires", "10m", "--quiet").strip()
    assert token.startswith("iir-join-")
    text = iir("agents", "invite", "--url", "https://router:1/")
    assert "iir-agent join https://router:1 -" in text
    found = from_json(iir("agents", "invite", "--json"))
    assert found["command"] == "iir-agent join http://127.0.0.1:8000 -"
    listed = iir("agents", "list")
    assert "invited: mac" in listed
    assert listed.count("invited: any agent") == 2
    assert token not in listed
    assert "1 unused invitation withdrawn" in iir("agents", "revoke", "mac")
    assert "withdrawn" in iir("agents", "revoke", found["prefix"])
    assert iir("agents", "list").count("invited:") == 1
    for span in ("1x", "", "-1h", "0s", "8d", "1h30m"):
        assert "--expires" in (said := iir("agents", "invite", "--expires", span, code=2)) or (
            "7 days" in said
        )
    assert "agent's name" in iir("agents", "invite", "--name", "a b", code=2)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.168.7.7", "http://192.168.7.7:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
    ],
)
def test_an_invitation_names_the_router_s_address(
    iir: Iir, monkeypatch: pytest.MonkeyPatch, host: str, expected: str
) -> None:
    monkeypatch.setattr(cli_joining, "_ELSEWHERE", ("127.0.0.1", 9))  # as seen from loopback
    monkeypatch.setenv("ROUTER_HOST", host)
    assert from_json(iir("agents", "invite", "--json"))["router_url"] == expected
