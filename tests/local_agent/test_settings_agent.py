"""The agent's settings: names, defaults, precedence, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from local_agent.settings import AgentSettings, load_settings


def test_defaults_follow_the_home(tmp_path: Path) -> None:
    settings = load_settings(iir_home=tmp_path)
    assert settings.config_path == tmp_path / "agent" / "agent.yaml"
    assert settings.token_path == tmp_path / "agent" / "credential"
    assert settings.models_dir == tmp_path / "models"
    assert settings.agent_host == "127.0.0.1"
    assert settings.agent_port is None
    assert settings.router_url == "http://127.0.0.1:8000"
    assert settings.agent_name


def test_flags_beat_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("AGENT_NAME=file\nAGENT_HOST=127.0.0.3\nAGENT_PORT=1\n")
    monkeypatch.setenv("AGENT_HOST", "127.0.0.2")
    monkeypatch.setenv("AGENT_PORT", "2")
    monkeypatch.setenv("ROUTER_URL", "")  # empty is unset
    settings = load_settings(agent_port=3, agent_host=None)
    assert settings.agent_name == "file"
    assert settings.agent_host == "127.0.0.2"
    assert settings.agent_port == 3
    assert settings.router_url == "http://127.0.0.1:8000"


def test_paths_of_the_user_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(agent_config=Path("~/a.yaml"), agent_token_file=Path("~/token"))
    assert settings.config_path == tmp_path / "a.yaml"
    assert settings.token_path == tmp_path / "token"


@pytest.mark.parametrize("url", ["http://10.0.0.1:80/", "https://router.example", "http://[::1]:5"])
def test_addresses_lose_their_last_slash(url: str) -> None:
    settings = load_settings(agent_url=url, router_url=url)
    assert settings.agent_url == settings.router_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://two words",
        "http://host/" + "a" * 512,
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    for name in ("agent_url", "router_url"):
        with pytest.raises(ValidationError, match="must be an address like"):
            load_settings(**{name: url})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent_port", 65536),
        ("agent_port", -1),
        ("agent_name", "n" * 129),
        ("agent_name", ""),
        ("agent_load_wait_s", -1),
        ("agent_drain_s", -0.1),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        load_settings(**{name: value})


def test_a_token_shows_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AGENT_PORT", "hf_secret")
    with pytest.raises(ValidationError) as refused:
        load_settings()
    assert "hf_secret" not in str(refused.value)
    assert "hf_secret" not in repr(AgentSettings(agent_port=1))
