"""Starting the router: what it refuses, and what it says then."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import router.app
from router.app import create_app, serve
from router.domain import Scope
from router.settings import Settings, load_settings
from router.store.agents import add_agent
from router.store.keys import create_key, revoke_key
from router.store.prepare import prepare
from router.store.writer import RegistryWriter
from shared.http.serve import bind


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    kinds = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(kind) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


def write(settings: Settings, change: Any) -> Any:
    prepare(settings.store_url)
    writer = RegistryWriter(settings.store_url)
    try:
        return writer.run_sync(change)
    finally:
        writer.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "router.lan"])
def test_a_network_needs_a_key_first(host: str) -> None:
    settings = load_settings(router_host=host, router_port=0)
    write(settings, lambda c: add_agent(c, "mac"))
    with pytest.raises(SystemExit) as refused:
        serve(settings)
    assert "iir keys create" in str(refused.value)
    assert host in str(refused.value)


def test_a_taken_port_is_named_with_the_setting_that_moves_the_router() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} .* taken.*ROUTER_PORT"):
            serve(load_settings(router_port=port))


def test_an_address_of_another_machine_is_said_to_be_so() -> None:
    settings = load_settings(router_host="192.0.2.7", router_port=0)
    write(settings, lambda c: create_key(c, "k", {Scope.INFERENCE}))
    with pytest.raises(SystemExit, match=r"can't listen on 192\.0\.2\.7"):
        serve(settings)


def test_a_damaged_registry_is_named_without_its_path(tmp_path: Any) -> None:
    path = tmp_path / "models.db"
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(SystemExit) as refused:
        serve(load_settings(sqlite_db_path=path, router_port=0))
    assert "damaged" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert path.read_bytes().startswith(b"garbage")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_until_it_is_told_to_stop(
    host: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(router_host=host, router_port=0, log_json=True)
    if host == "0.0.0.0":
        # a key that was revoked since does not open the router again
        key = write(settings, lambda c: create_key(c, "k", {Scope.INFERENCE}))
        write(settings, lambda c: revoke_key(c, key))
    ports: list[int] = []
    answers: list[dict[str, Any]] = []
    announced: list[dict[str, Any]] = []
    run_file = settings.iir_home / "run" / "router.json"

    def bound(host: str, port: int) -> socket.socket:
        found = bind(host, port)
        ports.append(found.getsockname()[1])
        return found

    def ask() -> None:
        deadline = time.perf_counter() + 10
        while not ports and time.perf_counter() < deadline:
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/readyz", timeout=10) as answer:
            answers.append(json.load(answer))
        announced.append(json.loads(run_file.read_text()))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(router.app, "bind", bound)
    client = threading.Thread(target=ask)
    client.start()
    serve(settings)
    client.join()
    assert answers[0]["status"] == "ready"
    assert announced == [{"port": ports[0], "host": host}]
    assert not run_file.exists()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["path"] for line in lines if line["event"] == "request"] == []


@pytest.mark.slow
def test_several_workers_agree_and_end_together(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "IIR_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "router", "serve", "--workers", "2", "--port", str(port)]
    settings = load_settings(iir_home=tmp_path)
    prepare(settings.store_url)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.perf_counter() + 30
            while statuses(port, 1) != {200}:
                assert time.perf_counter() < deadline
                time.sleep(0.05)
            run_file = tmp_path / "run" / "router.json"
            assert json.loads(run_file.read_text())["port"] == port
            workers = psutil.Process(process.pid).children(recursive=True)
            write(settings, lambda c: create_key(c, "k", {Scope.INFERENCE}))
            time.sleep(0.7)
            assert statuses(port, 12) == {401}
        finally:
            process.terminate()
            log = process.communicate(timeout=20)[1].decode()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert not run_file.exists()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def statuses(port: int, times: int) -> set[int]:
    """Ask for the models over connections of their own."""
    found = set()
    for _ in range(times):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                found.add(answer.status)
        except urllib.error.HTTPError as error:
            found.add(error.code)
            error.close()
        except OSError:
            found.add(0)
    return found


async def test_making_the_application_opens_nothing() -> None:
    settings = load_settings()
    create_app(settings)
    assert not settings.iir_home.exists()
