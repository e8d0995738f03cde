"""`iir` commands for the registry, providers and models, through Typer's runner."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.store import agents
from router.store.writer import RegistryWriter
from shared import __version__
from shared.contracts.agents import AgentModel, Heartbeat
from tests.router.command_line import Iir, from_json, register

pytestmark = pytest.mark.usefixtures("home")

# ── the registry as a whole ──────────────────────────────────────────────────────────────────


def test_reading_needs_a_registry_and_says_how_to_make_it(new_iir: Iir, home: Path) -> None:
    for command in (("models", "list"), ("keys", "list"), ("providers", "list")):
        assert "iir migrate" in new_iir(*command, code=1)
    assert not home.exists()


def test_first_write_makes_and_seeds_the_registry(new_iir: Iir, home: Path) -> None:
    new_iir("keys", "create", "--name", "laptop")
    assert stat.S_IMODE((home / "models.db").stat().st_mode) == 0o600
    names = [p["name"] for p in from_json(new_iir("providers", "list", "--json"))]
    assert names == ["local", "openai"]


def test_seed_makes_the_registry_too(new_iir: Iir) -> None:
    assert new_iir("seed") == "9 entries added\n"


def test_migrate_and_seed_again_and_again(new_iir: Iir) -> None:
    for _ in range(2):
        assert new_iir("migrate") == "the registry is up to date\n"
    assert new_iir("seed") == "9 entries added\n"
    assert new_iir("seed") == "nothing to add\n"


def test_seed_takes_a_file(new_iir: Iir, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("providers: [{name: acme, base_url: https://acme.example, zone: cluster}]")
    new_iir("migrate")
    assert new_iir("seed", str(path)) == "1 entries added\n"
    [found] = from_json(new_iir("providers", "list", "--json"))
    assert (found["name"], found["zone"], found["has_credential"]) == ("acme", "cluster", True)
    path.write_text("providers: [{name: acme, colour: red}]")
    assert "colour" in new_iir("seed", str(path), code=2)
    assert "can't be read" in new_iir("seed", "none.yaml", code=2)


def test_damaged_registry_is_one_line(new_iir: Iir, home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "models.db").write_bytes(b"garbage " * 512)
    for command in (("migrate",), ("models", "list"), ("keys", "create", "--name", "x")):
        error = new_iir(*command, code=1)
        assert "SQLITE_DB_PATH" in error
        assert str(tmp_path) not in error
    assert (home / "models.db").read_bytes() == b"garbage " * 512


def test_wrong_setting_is_one_line(iir: Iir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_PORT", "eight")
    assert "ROUTER_PORT" in iir("models", "list", code=2)


def test_paths_come_from_the_settings(
    new_iir: Iir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("SQLITE_DB_PATH", "sub/other.db")
    new_iir("migrate")
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


def test_a_provider_that_moved_is_followed_with_its_credential(
    iir: Iir, monkeypatch: pytest.MonkeyPatch
) -> None:
    iir("providers", "add", "acme", "--base-url", "https://acme.example", "--max-in-flight", "4")

    def shown() -> tuple[object, ...]:
        [found] = [p for p in from_json(iir("providers", "list", "--json")) if p["name"] == "acme"]
        return found["base_url"], found["key_env"], found["max_in_flight"], found["zone"]

    moved = "https://new.example/api"
    said = iir("providers", "set", "acme", "--base-url", f"{moved}/")
    assert said.startswith(f"provider acme at {moved}: at most 4 requests")
    assert shown() == (moved, None, 4, "cloud")
    result = CliRunner().invoke(app, ["providers", "set", "acme", "--key-env", "ACME_KEY"])
    assert "ACME_KEY is not set here" in result.stderr
    assert shown() == (moved, "ACME_KEY", 4, "cloud")
    iir("providers", "set", "acme", "--no-key-env")
    assert shown() == (moved, None, 4, "cloud")


def test_what_beats_a_base_url_is_told_where_it_is_set(
    iir: Iir, monkeypatch: pytest.MonkeyPatch
) -> None:
    iir("providers", "set", "openai", "--no-key-env")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    command = ["providers", "set", "openai", "--base-url", "https://new.example"]
    assert (
        "beat its base URL, with http://127.0.0.1:9/v1" in CliRunner().invoke(app, command).stderr
    )
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert CliRunner().invoke(app, command).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("openai",), "say what to set"),
        (("openai", "--base-url", "ftp://acme.example"), "http://"),
        (("openai", "--base-url", ""), "http://"),
        (("local", "--base-url", "http://127.0.0.1:5000"), "no base URL"),
        (("openai", "--key-env", "A-B"), "variable"),
        (("openai", "--key-env", "A", "--no-key-env"), "contradict"),
        (("nobody", "--base-url", "https://acme.example"), "no provider 'nobody'"),
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
        "objective": None,
        "slo": {"ttft_ms": None, "tpot_ms": None},
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


def test_the_version(iir: Iir) -> None:
    assert iir("--version") == f"iir {__version__}\n"


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
