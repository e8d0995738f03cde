"""The router's settings: where they come from, and which one wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from router.settings import load_settings
from shared.kit import home


def test_the_defaults_are_for_this_machine_alone() -> None:
    settings = load_settings()
    assert (settings.router_host, settings.router_port) == ("127.0.0.1", 8000)
    assert settings.web_concurrency == 1
    assert settings.router_max_body_mb == 32
    assert settings.router_cors_origins == settings.router_allowed_hosts == ""
    assert settings.openai_base_url is None


def test_flag_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ROUTER_PORT=1111\nROUTER_HOST=::1\nUNKNOWN=1\n")
    assert load_settings().router_port == 1111
    assert load_settings().router_host == "::1"
    monkeypatch.setenv("ROUTER_PORT", "2222")
    assert load_settings().router_port == 2222
    assert load_settings(router_port=3333, router_host=None).router_port == 3333
    assert load_settings(router_port=0).router_port == 0
    monkeypatch.setenv("ROUTER_PORT", "")
    assert load_settings().router_port == 1111


def test_where_the_registry_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    assert load_settings().store_url == f"sqlite:///{tmp_path}/home/models.db"
    monkeypatch.setenv("SQLITE_DB_PATH", "here.db")
    assert load_settings().store_url == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("SQLITE_DB_PATH", "~/there.db")
    assert load_settings().store_url == f"sqlite:///{Path.home()}/there.db"
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@db/iir")
    assert load_settings().store_url == "postgresql://user:secret@db/iir"
    assert "secret" not in repr(load_settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROUTER_PORT", "70000"),
        ("ROUTER_PORT", "eighty"),
        ("WEB_CONCURRENCY", "0"),
        ("ROUTER_MAX_BODY_MB", "0"),
        ("ROUTER_ATTEMPTS", "0"),
        ("ROUTER_CONNECT_TIMEOUT_S", "0"),
        ("ROUTER_LEASE_TTL_S", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        load_settings()
    assert name.lower() in str(refused.value)


@pytest.mark.parametrize(
    ("value", "host"), [(" 0.0.0.0 ", "0.0.0.0"), ("  ", "127.0.0.1"), ("[::1]", "::1")]
)
def test_the_address_to_listen_on(value: str, host: str) -> None:
    assert load_settings(router_host=value).router_host == host


def test_credentials_come_from_the_environment_or_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings()
    assert settings.credential("EXTERNAL_OPENAI_KEY") is None
    Path(".env").write_text("EXTERNAL_OPENAI_KEY=from-file\nEMPTY=\nBARE\n")
    assert settings.credential("EXTERNAL_OPENAI_KEY") == "from-file"
    assert settings.credential("EMPTY") is None
    assert settings.credential("BARE") is None
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", " from-environment\n")
    assert settings.credential("EXTERNAL_OPENAI_KEY") == "from-environment"
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", "  ")
    assert settings.credential("EXTERNAL_OPENAI_KEY") is None
    assert "from-file" not in repr(settings)


def test_another_projects_settings_are_none_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_ROOT", tmp_path / "site-packages")
    Path(".env").write_text(
        "DATABASE_URL=postgresql://theirs\nLOG_LEVEL=LOUD\nTHEIR_KEY=sk-theirs\n"
    )
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "state"))
    settings = load_settings()
    assert settings.database_url is None
    assert settings.credential("THEIR_KEY") is None
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".env").write_text("ROUTER_PORT=8123\nOUR_KEY=sk-ours\n")
    assert load_settings().router_port == 8123
    assert settings.credential("OUR_KEY") == "sk-ours"


def test_the_files_of_first_secrets_may_lie_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROUTER_KEY_FILE", "~/key")
    monkeypatch.setenv("ROUTER_AGENT_TOKEN_FILE", "~/token")
    settings = load_settings()
    assert settings.router_key_file == Path.home() / "key"
    assert settings.router_agent_token_file == Path.home() / "token"


@pytest.mark.parametrize(
    "given",
    [
        "http://Gateway:8000",
        " http://gateway:8000/ ",
        "http://gateway:8000/v1",
        "HTTP://gateway:8000/v1/",
        "gateway:8000",
        "gateway:8000/v1/",
    ],
)
def test_the_address_of_a_cluster(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("LLMD_ENDPOINT", given)
    assert load_settings().llmd_endpoint == "http://gateway:8000"


def test_other_addresses_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().llmd_endpoint is None
    monkeypatch.setenv("LLMD_ENDPOINT", "")
    assert load_settings().llmd_endpoint is None
    assert load_settings(llmd_endpoint="https://[::1]:443/v1").llmd_endpoint == "https://[::1]:443"
    assert load_settings(llmd_endpoint="10.0.0.7").llmd_endpoint == "http://10.0.0.7"
    for url in ("http://epp:9090", "epp:9090/", "http://epp:9090/metrics", "epp:9090/metrics/"):
        assert load_settings(llmd_metrics_url=url).llmd_metrics_url == "http://epp:9090/metrics"
    header = load_settings(llmd_model_header=" X-Gateway-Base-Model-Name ").llmd_model_header
    assert header == "x-gateway-base-model-name"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("LLMD_ENDPOINT", "http://gateway:8000/v2", "/v1"),
        ("LLMD_ENDPOINT", "http://gateway:8000/v1/chat/completions", "http://HOST:PORT"),
        ("LLMD_ENDPOINT", "ftp://gateway", "http://"),
        ("LLMD_ENDPOINT", "http://", "host"),
        ("LLMD_ENDPOINT", "http://gateway:99999", "port"),
        ("LLMD_ENDPOINT", "http://user:s3cret@gateway", "password"),
        ("LLMD_ENDPOINT", "http://gateway?s3cret=1", "query"),
        ("LLMD_ENDPOINT", "http://gate way", "characters"),
        ("LLMD_METRICS_URL", "http://epp:9090/stats", "/metrics"),
        ("LLMD_MODEL_HEADER", "authorization", "X-Gateway"),
        ("LLMD_MODEL_HEADER", "x-request-id", "X-Gateway"),
        ("LLMD_MODEL_HEADER", "x-llm-d-inference-fairness-id", "X-Gateway"),
        ("LLMD_MODEL_HEADER", "x-a: b", "X-Gateway"),
        ("LLMD_QUEUE_TTL_S", "-1", "greater"),
    ],
)
def test_what_of_a_cluster_is_refused_says_what_to_write(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, hint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        load_settings()
    assert name.lower() in str(refused.value)
    assert hint in str(refused.value)
    assert "s3cret" not in str(refused.value)
