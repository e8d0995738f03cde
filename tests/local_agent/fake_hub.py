"""A hub on loopback that redirects, cuts, lies and forgets, and pulls from it."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from local_agent.domain import ModelId
from local_agent.weights.files import disk_free
from local_agent.weights.hub import Patience
from local_agent.weights.job import Puller
from local_agent.weights.progress import Progress
from local_agent.weights.source import HubSource

CONTENT = b"GGUF" + bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODEL = ModelId("tiny")
SOURCE = HubSource(repo="org/repo", file="sub/tiny.gguf")
TOKEN = "hf_made_up_for_this_test"
FAST = Patience(tries=3, progress_bytes=1, first_wait_s=0.001, most_wait_s=0.001, stall_s=0.3)


@dataclass
class Seen:
    """A request as it arrived."""

    role: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Script:
    """How hub and storage behave."""

    content: bytes = CONTENT
    linked_etag: str | None = f'"{SHA256}"'
    says_size: bool = True
    storage_etag: str = '"storage-1"'
    head_status: list[int] = field(default_factory=list)
    error_code: str = ""
    get_status: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    has_ranges: bool = True
    wrong_start: list[int] = field(default_factory=list)
    extra: bytes = b""
    moved: list[str] = field(default_factory=list)
    redirect_to: str = ""
    seen: list[Seen] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def requests(self, role: str, method: str) -> list[Seen]:
        return [seen for seen in self.seen if (seen.role, seen.method) == (role, method)]


class FakeHub:
    """The hub answers HEAD with the file's facts and sends a GET to a storage on another port."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._servers = [_Server(script, role) for role in ("hub", "storage")]
        hub, storage = (server.server_address[1] for server in self._servers)
        self.url = f"http://127.0.0.1:{hub}"
        script.redirect_to = script.redirect_to or f"http://127.0.0.1:{storage}/blob?signature=abc"
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.script.is_over.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Script, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.role = role


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._note()
        if self.server.script.moved:
            self._answer(307, {"location": self.server.script.moved.pop(0)})
            return
        status = self.server.script.head_status.pop(0) if self.server.script.head_status else 302
        headers = {"location": self.server.script.redirect_to} if status == 302 else {}
        if self.server.script.linked_etag:
            headers["x-linked-etag"] = self.server.script.linked_etag
        if self.server.script.says_size:
            headers["x-linked-size"] = str(len(self.server.script.content))
        if self.server.script.error_code:
            headers["x-error-code"] = self.server.script.error_code
        self._answer(status, headers)

    def do_GET(self) -> None:
        self._note()
        if self.server.role == "hub":
            self._answer(302, {"location": self.server.script.redirect_to})
        elif self.server.script.get_status:
            self._answer(
                self.server.script.get_status.pop(0),
                {"x-error-code": self.server.script.error_code},
            )
        else:
            self._send()

    def _send(self) -> None:
        start = self._start()
        body = self.server.script.content[start:] + self.server.script.extra
        headers = {"etag": self.server.script.storage_etag, "content-length": str(len(body))}
        if start:
            told = (
                self.server.script.wrong_start.pop(0) if self.server.script.wrong_start else start
            )
            headers["content-range"] = f"bytes {told}-{len(self.server.script.content) - 1}/*"
        self._answer(206 if start else 200, headers)
        if self.server.script.stalls:
            self.wfile.write(body[: self.server.script.stalls.pop(0)])
            self.wfile.flush()
            self.server.script.is_over.wait(2)
            self.close_connection = True
        elif self.server.script.cuts:
            self.wfile.write(body[: self.server.script.cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _start(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if_range = self.headers.get("if-range", self.server.script.storage_etag)
        is_ranged = (
            found and self.server.script.has_ranges and if_range == self.server.script.storage_etag
        )
        return int(found[1]) if found and is_ranged else 0

    def _note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.script.seen.append(Seen(self.server.role, self.command, self.path, headers))

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        if "content-length" not in headers:
            headers = {**headers, "content-length": "0"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


async def fetch(
    hub: FakeHub,
    root: Path,
    *,
    source: HubSource = SOURCE,
    token: str | None = None,
    patience: Patience = FAST,
    seen: list[Progress] | None = None,
    free: int | None = None,
) -> Path:
    puller = Puller(
        root,
        env={},
        hub_endpoint=hub.url + "/",
        hub_token=token,
        patience=patience,
        free_bytes=disk_free if free is None else lambda _: free,
        report_every_s=0.001,
    )
    return await puller.pull(MODEL, [source], seen.append if seen is not None else lambda _: None)


def leave_part(root: Path, content: bytes, identity: str) -> Path:
    part = root / MODEL / "tiny.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    part.with_name("tiny.gguf.part.json").write_text(
        f'{{"identity": "{identity}", "storage_etag": "\\"storage-1\\""}}'
    )
    return part


IDENTITY = f'{SOURCE.ref} \\"{SHA256}\\" {len(CONTENT)}'
