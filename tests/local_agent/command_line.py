"""`iir-agent` for tests: a runner, a stand-in for a running agent, files to pull."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typer.testing import Result

GGUF = b"GGUF" + b"\x03\0\0\0" * 30_000
Run = Callable[..., Result]


class StandInAgent:
    """Answers what the command line asks of a running agent."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = [
            {"id": "smollm2-135m", "status": {"value": "loaded"}},
            {"id": "extra", "status": {"value": "failed"}},
        ]
        self.workers: object = [
            {
                "model": "smollm2-135m",
                "engine": "llama_cpp",
                "state": "ready",
                "pid": 4711,
                "in_flight": 2,
                "running": 803,
                "waiting": 907,
                "since_s": 61.5,
                "reason": "exited [with] 9",
                "new_field": 1,
            }
        ]
        self.reloads = 0
        self.told: list[str] = []
        self.answer: tuple[int, object] = (200, {"model": "m", "memory_mb": 7})
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
                """Stay quiet."""

            def do_GET(self) -> None:
                known: dict[str, object] = {
                    "/v1/models": {"data": agent.models},
                    "/internal/workers": agent.workers,
                    "/internal/capacity": None,  # an older agent does not tell
                    "/readyz": {"status": "ready", "lease": "held", "config": "ok"},
                }
                self._answer(200, known[self.path])

            def do_POST(self) -> None:
                if self.path.startswith("/internal/models/"):
                    agent.told.append(self.path.removeprefix("/internal/models/"))
                    self._answer(*agent.answer)
                    return
                assert self.path == "/internal/reload"
                assert self.headers["content-type"] == "application/json"
                agent.reloads += 1
                self._answer(200, {})

            def _answer(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response_only(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def make_wheel(folder: Path) -> str:
    folder.mkdir()
    info = "tiny_weights-1.0.dist-info"
    files = {
        "tiny_weights/tiny.gguf": GGUF,
        "tiny_weights/big.gguf": GGUF + GGUF,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_config(home: Path, text: str) -> Path:
    path = home / "agent" / "agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
