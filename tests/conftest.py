"""What all tests share: no network but loopback, no environment but the test's own."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import certifi
import pytest
import structlog
import typer.main
import typer.testing

from local_agent.control import trust
from tests import measuring

_OURS = ("IIR_", "ROUTER_", "AGENT_", "EXTERNAL_", "OPENAI_", "SQLITE_", "DATABASE_", "HF_", "LOG_")

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 1024**3


def pytest_configure(config: pytest.Config) -> None:
    """Let unit tests write into memory, where Linux has room there: each makes a folder, many a database.

    Who names a folder (`--basetemp`, `PYTEST_DEBUG_TEMPROOT`) has it there.
    """
    is_worker = hasattr(config, "workerinput")  # xdist's: its folder lies in that of all
    if not is_worker and "not integration" in config.option.markexpr and _has_room(_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))  # noqa: TID251 - pytest's own


def _has_room(folder: Path) -> bool:
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    can_run = not found.f_flag & getattr(os, "ST_NOEXEC", 0)  # tests write programs
    return can_run and os.access(folder, os.W_OK) and found.f_bavail * found.f_frsize > _ROOM_BYTES


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Measure nothing but what is said in `tests.measuring`."""
    coverage = measuring.coverage_of(session.config)
    if coverage is not None:
        if not measuring.only_distributes(session.config):
            measuring.import_measured()
        coverage.pause()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Measure a test that counts."""
    with measuring.measured(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the collector what lives as long as the tests do: modules, and thousands of test items."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_environment() -> Iterator[None]:
    """Let no variable of the developer's reach a test or what several tests share."""
    variables = [*os.environ]  # noqa: TID251 - clears it
    with pytest.MonkeyPatch.context() as patch:
        for name in variables:
            if name.startswith(_OURS):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def authorities_read_once() -> Iterator[None]:
    """Let all agents and all clients share what trusts the public authorities: each would read them anew.

    That takes longer than most tests. What trusts others, or is told files by the environment, is its own.
    """
    for_agents = trust.public_trust()
    make = ssl.create_default_context
    for_clients = make(cafile=certifi.where())

    def context(*args: Any, **options: Any) -> ssl.SSLContext:
        if not args and options == {"cafile": certifi.where()}:
            return for_clients
        return make(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "public_trust", lambda: for_agents)
        patch.setattr(ssl, "create_default_context", context)
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """Let typer's runner build an application's commands once, as a program does, not for each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no `.env` of the checkout reach a test, and no home but its own."""
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "iir-home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Take back what a test that starts a service does to the logs: its stream is closed soon."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def loopback_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test that connects to anywhere but this machine."""
    if request.node.get_closest_marker("integration"):
        yield
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test connects to {address[0]}")
        connect(self, address)  # type: ignore[arg-type] # passed on as it came

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
