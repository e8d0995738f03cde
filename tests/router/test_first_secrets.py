"""A router that makes its first key and its agent's credential by itself."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import router.app
from router.app import serve
from router.domain import Catalog
from router.settings import Settings, load_settings
from router.store.agents import list_agents, revoke_agent
from router.store.first_secrets import FirstSecrets
from router.store.keys import list_keys, parse_prefix, revoke_key
from router.store.prepare import prepare
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter


class Bound(Exception):
    """The router would listen now."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return a container's settings; what serves with them stops before it listens."""

    def bind(host: str, port: int) -> None:
        raise Bound

    monkeypatch.setattr(router.app, "bind", bind)
    return load_settings(
        router_host="0.0.0.0",
        router_port=0,
        router_key_file=tmp_path / "key" / "api-key",
        router_agent_token_file=tmp_path / "agent" / "credential",
    )


def start(settings: Settings) -> None:
    with pytest.raises(Bound):
        serve(settings)


def write(settings: Settings, change: Any) -> Any:
    writer = RegistryWriter(settings.store_url)
    try:
        return writer.run_sync(change)
    finally:
        writer.close()


def catalog(settings: Settings) -> Catalog:
    reader = RegistryReader(settings.store_url)
    try:
        found = reader.catalog()
    finally:
        reader.close()
    assert found is not None
    return found


def held(path: Path | None) -> str:
    assert path is not None
    return path.read_text().strip()


def test_a_fresh_router_makes_a_key_and_a_credential_for_their_owner_only(
    settings: Settings,
) -> None:
    start(settings)
    for path in (settings.router_key_file, settings.router_agent_token_file):
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [one.name for one in path.parent.iterdir()] == [path.name]
    found = catalog(settings)
    assert not found.is_open
    scopes = {key.prefix: {scope.value for scope in key.scopes} for key in found.keys.values()}
    assert scopes == {
        parse_prefix(held(settings.router_key_file)): {"inference"},
        parse_prefix(held(settings.router_agent_token_file)): {"agent"},
    }


def test_later_starts_change_nothing(settings: Settings) -> None:
    start(settings)
    before = (held(settings.router_key_file), held(settings.router_agent_token_file))
    start(settings)
    assert (held(settings.router_key_file), held(settings.router_agent_token_file)) == before
    assert len(write(settings, list_keys)) == 1
    assert [agent.record.name for agent in write(settings, list_agents)] == ["local"]


def test_a_key_that_was_revoked_or_whose_file_was_removed_is_not_replaced(
    settings: Settings,
) -> None:
    start(settings)
    key = held(settings.router_key_file)
    write(settings, lambda c: revoke_key(c, key))
    assert settings.router_key_file is not None
    settings.router_key_file.unlink()
    start(settings)
    assert not settings.router_key_file.exists()
    assert [one.revoked_at is None for one in write(settings, list_keys)] == [False]


def test_a_registry_that_is_lost_takes_up_what_the_files_hold(settings: Settings) -> None:
    start(settings)
    before = (held(settings.router_key_file), held(settings.router_agent_token_file))
    for path in settings.iir_home.glob("models.db*"):
        path.unlink()
    start(settings)
    assert (held(settings.router_key_file), held(settings.router_agent_token_file)) == before
    assert len(catalog(settings).keys) == 2


def test_an_agent_that_was_revoked_stays_out_and_keeps_nobody_from_serving(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    start(settings)
    write(settings, lambda c: revoke_agent(c, "local"))
    start(settings)
    assert "local_agent_refused" in capfd.readouterr().err
    assert [a.revoked_at is None for a in write(settings, list_agents)] == [False]
    # its file is gone: the way back
    assert settings.router_agent_token_file is not None
    settings.router_agent_token_file.unlink()
    start(settings)
    assert [a.revoked_at is None for a in write(settings, list_agents)] == [True]


def test_a_file_that_cannot_be_written_is_named_and_leaves_the_router_shut(
    settings: Settings,
) -> None:
    assert settings.router_key_file is not None
    settings.router_key_file.parent.parent.joinpath("key").write_text("in the way")
    with pytest.raises(SystemExit, match=r"key file \(ROUTER_KEY_FILE\)"):
        serve(settings)


def test_without_the_settings_nothing_is_made(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="without an API key"):
        serve(load_settings(router_host="0.0.0.0", router_port=0))
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in made if not name.startswith("models.db")} == set()
    assert write(settings, list_keys) == write(settings, list_agents) == []


def test_routers_that_start_at_once_on_one_registry_make_one_of_each(settings: Settings) -> None:
    prepare(settings.store_url)
    key_file, token_file = settings.router_key_file, settings.router_agent_token_file
    assert key_file is not None
    assert token_file is not None
    at_once = 4
    together = threading.Barrier(at_once)

    def make(_: int) -> bool:
        with closing(FirstSecrets(settings.store_url)) as secrets:
            together.wait(10)
            is_made = secrets.make_key(key_file)
            secrets.admit_local_agent(token_file)
            return is_made

    with ThreadPoolExecutor(at_once) as routers:
        made = list(routers.map(make, range(at_once)))
    assert sorted(made) == [False] * (at_once - 1) + [True]
    (key,) = write(settings, list_keys)
    assert key.prefix == parse_prefix(held(key_file))
    (agent,) = write(settings, list_agents)
    assert agent.key_prefix == parse_prefix(held(token_file))
