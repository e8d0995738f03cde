"""`iir` commands that change and list the registry, through Typer's runner."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.cli import joining as cli_joining
from router.domain import Scope
from router.settings import load_settings
from router.store import agents, keys
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter
from shared import __version__
from shared.contracts.agents import AgentModel, Capacity, Heartbeat, Registration

Iir = Callable[..., str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "SQLITE_DB_PATH",
        "DATABASE_URL",
        "ROUTER_HOST",
        "ROUTER_PORT",
        "WEB_CONCURRENCY",
        "EXTERNAL_OPENAI_KEY",
        "OPENAI_BASE_URL",
        "ROUTER_LEASE_TTL_S",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def iir() -> Iir:
    """Run a command, and return its standard output, or the error if it must fail."""

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        if code == 0:
            return result.stdout
        assert result.stderr.startswith("iir: ")
        assert result.stderr.count("\n") == 1, "an error is one line"
        return result.stderr

    return run


@pytest.fixture
def writer(iir: Iir) -> Iterator[RegistryWriter]:
    iir("migrate")
    found = RegistryWriter(load_settings().store_url)
    yield found
    found.close()


def register(writer: RegistryWriter, name: str, *models: AgentModel, at: float) -> int:
    """Let an agent register, as the router would write it."""
    writer.run_sync(lambda c: agents.add_agent(c, name))
    infos = writer.run_sync(agents.list_agents)
    row_id = next(info.record.row_id for info in infos if info.record.name == name)
    registration = Registration(
        incarnation=1,
        name=name,
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=models,
    )
    writer.run_sync(
        lambda c: agents.save_registration(
            c, row_id, f"id-{name}", registration, f"lease-{name}", now=lambda: at
        )
    )
    return row_id


def from_json(text: str) -> Any:
    return json.loads(text)


# ── the registry as a whole ──────────────────────────────────────────────────────────────────


def test_reading_needs_a_registry_and_says_how_to_make_it(iir: Iir, home: Path) -> None:
    for command in (("models", "list"), ("keys", "list"), ("providers", "list")):
        assert "iir migrate" in iir(*command, code=1)
    assert not home.exists()


def test_first_write_makes_and_seeds_the_registry(iir: Iir, home: Path) -> None:
    iir("keys", "create", "--name", "laptop")
    assert stat.S_IMODE((home / "models.db").stat().st_mode) == 0o600
    names = [p["name"] for p in from_json(iir("providers", "list", "--json"))]
    assert names == ["local", "openai"]


def test_seed_makes_the_registry_too(iir: Iir) -> None:
    assert iir("seed") == "9 entries added\n"


def test_migrate_and_seed_again_and_again(iir: Iir) -> None:
    for _ in range(2):
        assert iir("migrate") == "the registry is up to date\n"
    assert iir("seed") == "9 entries added\n"
    assert iir("seed") == "nothing to add\n"


def test_seed_takes_a_file(iir: Iir, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("providers: [{name: acme, base_url: https://acme.example, zone: cluster}]")
    iir("migrate")
    assert iir("seed", str(path)) == "1 entries added\n"
    [found] = from_json(iir("providers", "list", "--json"))
    assert (found["name"], found["zone"], found["has_credential"]) == ("acme", "cluster", True)
    path.write_text("providers: [{name: acme, colour: red}]")
    assert "colour" in iir("seed", str(path), code=2)
    assert "can't be read" in iir("seed", "none.yaml", code=2)


def test_damaged_registry_is_one_line(iir: Iir, home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "models.db").write_bytes(b"garbage " * 512)
    for command in (("migrate",), ("models", "list"), ("keys", "create", "--name", "x")):
        error = iir(*command, code=1)
        assert "SQLITE_DB_PATH" in error
        assert str(tmp_path) not in error
    assert (home / "models.db").read_bytes() == b"garbage " * 512


def test_wrong_setting_is_one_line(iir: Iir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_PORT", "eight")
    assert "ROUTER_PORT" in iir("models", "list", code=2)


def test_paths_come_from_the_settings(
    iir: Iir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("SQLITE_DB_PATH", "sub/other.db")
    iir("migrate")
    assert (tmp_path / "sub" / "other.db").exists()
    assert not home.exists()


# ── providers ────────────────────────────────────────────────────────────────────────────────


def test_providers_are_added_listed_and_removed(iir: Iir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", "s3cret-value")
    base_url = "https://acme.example/api/v1/"
    iir("providers", "add", "acme", "--base-url", base_url, "--key-env", "ACME_KEY")
    table = iir("providers", "list")
    assert "https://acme.example/api/v1 " in table
    assert "ACME_KEY (set)" in table
    assert "EXTERNAL_OPENAI_KEY (not set)" in table
    assert "s3cret-value" not in table + iir("providers", "list", "--json")
    assert "already" in iir("providers", "add", "acme", "--base-url", base_url, code=2)
    iir("providers", "remove", "acme")
    assert "acme" not in iir("providers", "list")
    assert "no provider" in iir("providers", "remove", "acme", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acme", "--base-url", "ftp://acme.example"), "http://"),
        (("acme", "--base-url", "https://me:s3cret@acme.example"), "user or password"),
        (("a b", "--base-url", "https://acme.example"), "provider's name"),
        (("acme", "--base-url", "https://acme.example", "--dialect", "klingon"), "openai"),
        (("acme", "--base-url", "https://acme.example", "--key-env", "A-B"), "variable"),
        (("acme", "--base-url", "https://acme.example", "--max-in-flight", "0"), "1 to 1000000"),
        (("acme", "--base-url", "https://acme.example", "--api", "smoke"), "responses, messages"),
    ],
)
def test_invalid_providers_are_one_line(iir: Iir, arguments: tuple[str, ...], message: str) -> None:
    error = iir("providers", "add", *arguments, code=2)
    assert message in error
    assert "s3cret" not in error


def test_limit_and_apis_of_a_provider_are_set_and_taken_back(iir: Iir) -> None:
    base = ("--base-url", "https://acme.example", "--max-in-flight", "4")
    iir("providers", "add", "acme", *base, "--api", "messages", "--api", "chat")

    def shown() -> tuple[object, object]:
        found = {p["name"]: p for p in from_json(iir("providers", "list", "--json"))}
        return found["acme"]["max_in_flight"], found["acme"]["apis"]

    assert shown() == (4, ["chat", "messages"])
    table = iir("providers", "list")
    assert "at most 4" in table
    assert "chat, messages" in table
    change = ("providers", "set", "acme")
    assert iir(*change, "--max-in-flight", "9").endswith(
        "at most 9 requests in flight; APIs: chat, messages\n"
    )
    assert shown() == (9, ["chat", "messages"])
    iir(*change, "--api", "responses")
    assert shown() == (9, ["responses"])
    assert "no limit of requests in flight; APIs: its dialect's default" in iir(
        *change, "--no-max-in-flight", "--default-apis"
    )
    assert shown() == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("openai",), "say what to set"),
        (("openai", "--max-in-flight", "2", "--no-max-in-flight"), "contradict"),
        (("openai", "--api", "chat", "--default-apis"), "contradict"),
        (("openai", "--api", "chat", "--api", "chat"), "twice"),
        (("local", "--max-in-flight", "2"), "agents say themselves"),
        (("nobody", "--default-apis"), "no provider 'nobody'"),
    ],
)
def test_what_cannot_be_set_is_one_line(iir: Iir, arguments: tuple[str, ...], message: str) -> None:
    assert message in iir("providers", "set", *arguments, code=2)


def test_missing_credential_is_told_when_adding() -> None:
    options = ("--base-url", "http://127.0.0.1:1", "--key-env", "NOT_SET", "--zone", "local")
    result = CliRunner().invoke(app, ["providers", "add", "acme", *options])
    assert result.exit_code == 0
    assert "NOT_SET is not set" in result.stderr


# ── models ───────────────────────────────────────────────────────────────────────────────────


def test_models_are_added_listed_and_removed(iir: Iir, monkeypatch: pytest.MonkeyPatch) -> None:
    iir("migrate")
    assert "no models" in iir("models", "list")
    iir("seed")
    alias = ("--alias", "best", "--alias", "b[red]x")
    iir("models", "add", "gpt-x", "--provider", "openai", "--upstream-name", "gpt-x-1", *alias)
    [found] = from_json(iir("models", "list", "--json"))
    assert found == {
        "id": "gpt-x",
        "aliases": ["b[red]x", "best"],
        "served_by": "openai",
        "zone": "cloud",
        "status": "no credential",
        "context_tokens": None,
        "limits": {"connect_s": None, "first_byte_s": None, "idle_s": None, "total_s": None},
    }
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", "sk-test")
    table = iir("models", "list")
    assert "b[red]x, best" in table
    assert "ready" in table
    assert "already" in iir("models", "add", "gpt-x", "--provider", "openai", code=2)
    assert "no provider" in iir("models", "add", "m", "--provider", "nobody", code=2)
    assert "printable" in iir("models", "add", "a b", "--provider", "openai", code=2)
    assert "alias of 'gpt-x'" in iir("models", "remove", "best", code=2)
    assert "gpt-x" in iir("providers", "remove", "openai", code=2)
    iir("models", "remove", "gpt-x")
    assert from_json(iir("models", "list", "--json")) == []


def test_models_time_limits_are_shown(iir: Iir) -> None:
    add = ("models", "add", "slow", "--provider", "openai")
    assert "at most 86400 s" in iir(*add, "--idle-s", "nan", code=2)
    for weight in ("0", "-1", "nan", "inf"):
        assert "more than 0 and at most 1000" in iir(*add, f"--weight={weight}", code=2)
    iir(*add, "--connect-s", "0.5", "--first-byte-s", "600")
    assert "connect 0.5 s, first_byte 600 s" in iir("models", "list")
    [found] = from_json(iir("models", "list", "--json"))
    assert found["limits"]["first_byte_s"] == 600
    assert found["limits"]["total_s"] is None


def test_agents_models_are_listed_with_their_state(
    iir: Iir, writer: RegistryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_LEASE_TTL_S", "1e9")
    iir("seed")
    smol = AgentModel(id="smol", aliases=("default",), status="loading", context_tokens=8192)
    big = AgentModel(id="big", is_pulled=False)
    row_id = register(writer, "mac", smol, big, at=1.0)
    register(writer, "gone", AgentModel(id="old"), at=-1e10)
    register(writer, "banned", AgentModel(id="never"), at=1.0)
    writer.run_sync(lambda c: agents.revoke_agent(c, "banned"))
    iir("models", "add", "mine", "--provider", "local", "--upstream-name", "default")
    iir("models", "add", "lost", "--provider", "local")
    heartbeat = Heartbeat(
        lease_id="lease-mac",
        incarnation=1,
        seq=1,
        models=(smol.model_copy(update={"status": "loaded"}), big),
    )
    writer.run_sync(
        lambda c: agents.save_heartbeats(c, [(row_id, "lease-mac", heartbeat)], now=lambda: 2.0)
    )
    rows = {
        row["id"]: (row["served_by"], row["zone"], row["status"], row["context_tokens"])
        for row in from_json(iir("models", "list", "--json"))
    }
    assert rows == {
        "smol": ("agent mac", "local", "loaded", 8192),
        "big": ("agent mac", "local", "not pulled", None),
        "old": ("agent gone", "local", "agent away", None),
        "mine": ("local", "local", "loaded", None),
        "lost": ("local", "local", "no agent has it", None),
    }


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


def test_the_version(iir: Iir) -> None:
    assert iir("--version") == f"iir {__version__}\n"


def test_agents_are_listed_and_revoked(iir: Iir, writer: RegistryWriter) -> None:
    assert "no agents" in iir("agents", "list")
    row_id = register(writer, "mac", AgentModel(id="smol"), at=1e12)
    register(writer, "late", at=1.0)
    writer.run_sync(lambda c: agents.add_agent(c, "new"))
    states = {a["name"]: a["state"] for a in from_json(iir("agents", "list", "--json"))}
    assert states == {"mac": "ready", "late": "lease expired", "new": "never registered"}
    capacity = Capacity(budget_bytes=3 * 2**30, free_bytes=2**30)
    heartbeat = Heartbeat(
        lease_id="lease-mac", incarnation=1, seq=1, state="draining", capacity=capacity
    )
    writer.run_sync(
        lambda c: agents.save_heartbeats(c, [(row_id, "lease-mac", heartbeat)], now=lambda: 1e10)
    )
    listed = iir("agents", "list")
    assert "draining" in listed
    assert "1.0 of 3.0 GiB" in listed
    told = {a["name"]: a["capacity"] for a in from_json(iir("agents", "list", "--json"))}
    assert told == {"mac": capacity.model_dump(), "late": None, "new": None}
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


# ── serve ────────────────────────────────────────────────────────────────────────────────────


def test_serve_refuses_the_network_without_a_key() -> None:
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code != 0
    assert "iir keys create" in f"{result.output}{result.exception}"


def test_help_names_all_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    for command in (
        "serve",
        "migrate",
        "seed",
        "providers",
        "models",
        "keys",
        "agents",
        "usage",
        "doctor",
    ):
        assert command in result.stdout
