"""Fixtures of the router's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from typer.testing import CliRunner

from router.cli import app
from router.fleet.clusters import Clusters
from router.settings import load_settings
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter
from tests.router.clusters import place
from tests.router.command_line import Iir
from tests.router.harness import StartRouter, install, starter
from tests.router.test_fleet_membership import FakeClock
from tests.router.test_fleet_registry import CLOUD
from tests.router.upstreams import SharedScene, shared_scene

# As in production, where loops matter: how connections end, and when their owner hears of it.
_ON_UVLOOP = {"test_cancellation"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Say on which loop a test runs (pytest-asyncio)."""
    if item.path.stem in _ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that is set by hand."""
    return FakeClock()


@pytest.fixture
def clusters(clock: FakeClock) -> Clusters:
    """Return what is known of one cluster that was not asked yet, beside a cloud."""
    found = Clusters(clock)
    found.keep([place(), (CLOUD, None)])
    return found


@pytest.fixture
def start_router(tmp_path: Path) -> StartRouter:
    """Return a function that starts routers; see `tests.router.harness.starter`."""
    return starter(tmp_path / "router-home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedScene]:
    """Return a router and an upstream that answers what no upstream should: one for a module."""
    async with shared_scene(tmp_path_factory.mktemp("hostile")) as scene:
        yield scene


@pytest.fixture
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
        "LLMD_ENDPOINT",
        "LLMD_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def new_iir(home: Path) -> Iir:
    """Run a command where nothing is yet; return its standard output, or the error if it must fail."""

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
def iir(new_iir: Iir, home: Path) -> Iir:
    """Run a command where a registry is that holds what a fresh one does."""
    install(home / "models.db")
    return new_iir


@pytest.fixture
def url() -> str:
    """Return the address of a registry without a row, where the settings say that it is."""
    found = load_settings().store_url
    install(Path(found.removeprefix("sqlite:///")), is_seeded=False)
    return found


@pytest.fixture
def path(url: str) -> Path:
    """Return where that registry's file is."""
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def writer(url: str) -> Iterator[RegistryWriter]:
    found = RegistryWriter(url)
    yield found
    found.close()


@pytest.fixture
def reader(url: str) -> Iterator[RegistryReader]:
    found = RegistryReader(url)
    yield found
    found.close()
