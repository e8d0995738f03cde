"""What all tests share: no network but loopback, no environment but the test's own."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
import structlog

_OURS = ("IIR_", "ROUTER_", "AGENT_", "EXTERNAL_", "OPENAI_", "SQLITE_", "DATABASE_", "HF_", "LOG_")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no variable of the developer's reach a test, and no `.env` of the checkout."""
    for name in [name for name in os.environ if name.startswith(_OURS)]:  # noqa: TID251 - clears it
        monkeypatch.delenv(name)
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority, for `localhost` only."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    options = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]
    options += [
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    made = subprocess.run([openssl, *options], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this openssl can't make the certificate")
    return cert, key
