"""The health check of the images, against what a service answers."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.kit.healthy import problem
from shared.kit.run_file import announced
from tests.threaded import served_by


class Service(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[tuple[type[Service], int]]:
    handler = type("Handler", (Service,), {})
    with served_by(handler) as port:
        yield handler, port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_ready_service_is_healthy(
    service: tuple[type[Service], int], tmp_path: Path, host: str
) -> None:
    with announced(tmp_path / "run.json", host=host, port=service[1]):
        assert problem(str(tmp_path / "run.json")) is None


def test_one_that_drains_or_starts_is_not(
    service: tuple[type[Service], int], tmp_path: Path
) -> None:
    service[0].status = 503
    with announced(tmp_path / "run.json", host="127.0.0.1", port=service[1]):
        assert problem(str(tmp_path / "run.json")) == "/readyz answers 503"


def test_neither_is_one_that_is_gone_or_never_was(tmp_path: Path) -> None:
    assert problem(str(tmp_path / "run.json")) == "it does not run"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        port = silent.getsockname()[1]
        with announced(tmp_path / "run.json", host="127.0.0.1", port=port):
            assert "does not answer" in (problem(str(tmp_path / "run.json")) or "")


def test_the_command_says_why_and_exits_with_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.kit.healthy", str(tmp_path / "none")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "it does not run\n")
