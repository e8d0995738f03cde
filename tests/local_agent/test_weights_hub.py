"""Downloads from a hub on loopback that redirects, cuts, lies and forgets."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import httpx
import pytest

from local_agent.domain import ModelId
from local_agent.weights.errors import (
    AccessDenied,
    ChecksumMismatch,
    NotEnoughSpace,
    NotGguf,
    PullError,
    SourceFailed,
    SourceInvalid,
    SourceNotFound,
    SourceUnreachable,
)
from local_agent.weights.files import Workspace, disk_free
from local_agent.weights.hub import Hub, Patience
from local_agent.weights.job import Puller
from local_agent.weights.progress import Meter, Phase, Progress
from local_agent.weights.source import HubSource
from shared.kit.clock import monotonic

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


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def hub(script: Script) -> Iterator[FakeHub]:
    server = FakeHub(script)
    yield server
    server.close()


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


async def test_a_file_arrives_whole_under_its_name(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = await fetch(hub, tmp_path, seen=seen)
    assert path == tmp_path / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(item.name for item in path.parent.iterdir()) == ["tiny.gguf", "weights.json"]
    assert seen[-1].phase is Phase.DONE
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(CONTENT)
    assert {report.source for report in seen} <= {"", SOURCE.ref}
    assert hub.script.seen[0].path == "/org/repo/resolve/main/sub/tiny.gguf"


async def test_pulled_weights_are_not_pulled_again(hub: FakeHub, tmp_path: Path) -> None:
    first = await fetch(hub, tmp_path)
    count = len(hub.script.seen)
    assert await fetch(hub, tmp_path) == first
    assert len(hub.script.seen) == count


async def test_the_token_stays_with_the_hub_and_out_of_the_log(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await fetch(hub, tmp_path, token=f" {TOKEN}\n")
    assert all(seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in at(hub, "hub"))
    assert at(hub, "storage")
    assert all("authorization" not in seen.headers for seen in at(hub, "storage"))
    assert TOKEN not in caplog.text


def at(hub: FakeHub, role: str) -> list[Seen]:
    return [seen for seen in hub.script.seen if seen.role == role]


async def test_a_cut_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [100_000, 150_000]
    path = await fetch(hub, tmp_path)
    assert path.read_bytes() == CONTENT
    starts = [seen.headers.get("range", "") for seen in hub.script.requests("storage", "GET")]
    assert starts[0] == ""
    assert [int(start[6:-1]) for start in starts[1:]] == [100_000, 250_000]
    last = hub.script.requests("storage", "GET")[-1]
    assert last.headers["if-range"] == '"storage-1"'


async def test_a_later_pull_goes_on_after_a_kill(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT[:200_000], IDENTITY)
    seen: list[Progress] = []
    path = await fetch(hub, tmp_path, seen=seen)
    assert path.read_bytes() == CONTENT
    (request,) = hub.script.requests("storage", "GET")
    assert request.headers["range"] == "bytes=200000-"


async def test_a_cancelled_pull_keeps_its_bytes(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [300_000]
    task = asyncio.create_task(fetch(hub, tmp_path, patience=Patience(stall_s=30)))
    part = tmp_path / MODEL / "tiny.gguf.part"
    while not part.is_file() or part.stat().st_size < 300_000:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert hub.script.requests("storage", "GET")[-1].headers["range"] == "bytes=300000-"


def test_a_killed_process_leaves_what_it_has(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [300_000]
    child = subprocess.Popen(
        [sys.executable, "-c", PULL_PROGRAM, str(tmp_path), hub.url], cwd=Path(__file__).parents[2]
    )
    part = tmp_path / MODEL / "tiny.gguf.part"
    while child.poll() is None and not (part.is_file() and part.stat().st_size >= 300_000):
        time.sleep(0.01)
    child.kill()
    child.wait()
    hub.script.is_over.set()
    assert asyncio.run(fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert hub.script.requests("storage", "GET")[-1].headers["range"] == "bytes=300000-"


PULL_PROGRAM = f"""
import asyncio, sys
from pathlib import Path
from local_agent.weights.job import Puller
from local_agent.weights.source import HubSource
puller = Puller(Path(sys.argv[1]), env={{}}, hub_endpoint=sys.argv[2])
source = HubSource(repo="org/repo", file="sub/tiny.gguf")
asyncio.run(puller.pull("{MODEL}", [source], lambda progress: None))
"""


async def test_a_whole_part_is_only_checked(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT, IDENTITY)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert not hub.script.requests("storage", "GET")


@pytest.mark.parametrize(
    ("content", "identity"),
    [
        (b"GGUFold" * 100, "another file"),
        (CONTENT + b"too long", IDENTITY),
    ],
)
async def test_a_part_of_something_else_is_dropped(
    hub: FakeHub, tmp_path: Path, content: bytes, identity: str
) -> None:
    leave_part(tmp_path, content, identity)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    (request,) = hub.script.requests("storage", "GET")
    assert "range" not in request.headers


@pytest.mark.parametrize("notes", ["[1]", "{broken", '{"identity": 3}'])
async def test_a_part_with_unreadable_notes_is_dropped(
    hub: FakeHub, tmp_path: Path, notes: str
) -> None:
    part = leave_part(tmp_path, b"GGUFold", IDENTITY)
    part.with_name("tiny.gguf.part.json").write_text(notes)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_server_without_ranges_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.has_ranges = False
    hub.script.cuts = [100_000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_changed_file_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, b"GGUFold" * 100, IDENTITY)
    hub.script.storage_etag = '"storage-2"'
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_weak_etag_is_not_used_for_if_range(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.storage_etag = 'W/"storage"'
    hub.script.cuts = [100_000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert "if-range" not in hub.script.requests("storage", "GET")[-1].headers


async def test_another_range_than_asked_for_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [100_000]
    hub.script.wrong_start = [7]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_an_unknown_range_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, b"GGUFold" * 100, IDENTITY)
    hub.script.get_status = [416]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_silent_connection_counts_as_broken(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [1000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_tries_without_progress_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [1000, 0, 0, 0]
    with pytest.raises(SourceUnreachable, match=r"connection broken, 3 tries.*goes on from it"):
        await fetch(hub, tmp_path)
    assert (tmp_path / MODEL / "tiny.gguf.part").stat().st_size == 1000


async def test_busy_answers_are_tried_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.head_status = [503, 429]
    hub.script.get_status = [502, 500]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_hub_that_stays_busy_is_unreachable(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.head_status = [503] * 9
    with pytest.raises(SourceUnreachable, match="status 503, 3 tries"):
        await fetch(hub, tmp_path)


async def test_nobody_there(tmp_path: Path) -> None:
    closed = FakeHub(Script())
    closed.close()
    with pytest.raises(SourceUnreachable, match="no connection") as caught:
        await fetch(closed, tmp_path)
    assert "127.0.0.1" not in str(caught.value)
    assert "kept" not in str(caught.value)


async def test_a_wrong_checksum_is_refused_and_the_bytes_removed(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.script.linked_etag = '"' + "0" * 64 + '"'
    with pytest.raises(ChecksumMismatch, match=r"checksum of tiny\.gguf is wrong"):
        await fetch(hub, tmp_path)
    assert not (tmp_path / MODEL).exists()


async def test_the_configured_checksum_counts_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.linked_etag = '"not-a-digest"'
    pinned = HubSource(repo="org/repo", file="tiny.gguf", sha256="1" * 64)
    with pytest.raises(ChecksumMismatch):
        await fetch(hub, tmp_path, source=pinned)


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (401, "GatedRepo", AccessDenied, r"accept the licence at \S+/org/repo and set HF_TOKEN"),
        (403, "", AccessDenied, "or there is no such repository"),
        (404, "EntryNotFound", SourceNotFound, "no such file: org/repo, sub/tiny.gguf"),
        (404, "RepoNotFound", SourceNotFound, "no such repository"),
        (418, "", SourceFailed, "status 418"),
    ],
)
async def test_refusals_say_what_to_do(
    hub: FakeHub, tmp_path: Path, status: int, code: str, kind: type[PullError], message: str
) -> None:
    hub.script.head_status, hub.script.error_code = [status], code
    with pytest.raises(kind, match=message):
        await fetch(hub, tmp_path, token=TOKEN)


async def test_a_storage_that_refuses(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.get_status = [403]
    with pytest.raises(AccessDenied):
        await fetch(hub, tmp_path)
    hub.script.get_status = [204]
    with pytest.raises(SourceFailed, match="status 204"):
        await fetch(hub, tmp_path)


async def test_a_file_that_is_no_gguf(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.content = b"<html>please log in</html>"
    hub.script.linked_etag = None
    with pytest.raises(NotGguf, match=r"tiny\.gguf is not a GGUF file"):
        await fetch(hub, tmp_path)
    assert not (tmp_path / MODEL / "tiny.gguf").exists()


async def test_more_bytes_than_announced(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.extra = b"and more"
    with pytest.raises(SourceFailed, match="more bytes than it announced"):
        await fetch(hub, tmp_path)


async def test_a_hub_that_tells_no_size(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.says_size = False
    hub.script.linked_etag = None
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_moves_within_the_hub_are_followed(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.says_size = True
    hub.script.moved = ["/new/repo/resolve/main/sub/tiny.gguf"]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_moves_in_circles_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.moved = ["/again"] * 9
    with pytest.raises(SourceFailed, match="redirects in circles"):
        await fetch(hub, tmp_path)


async def test_storage_redirects_in_circles_end(tmp_path: Path) -> None:
    script = Script()
    hub = FakeHub(script)
    script.redirect_to = f"{hub.url}/round"
    try:
        with pytest.raises(SourceFailed, match="makes no sense"):
            await fetch(hub, tmp_path)
    finally:
        hub.close()


async def test_a_full_disk_is_noticed_before_the_download(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSpace, match=r"0\.5 MB needed, 0\.5 MB free"):
        await fetch(hub, tmp_path, free=len(CONTENT) + 1)
    assert not hub.script.requests("storage", "GET")
    path = await fetch(hub, tmp_path, free=int(len(CONTENT) * 1.05))
    assert path.is_file()


async def test_an_unencrypted_redirect_of_an_encrypted_hub_is_refused(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(302, headers={"x-linked-size": "10", "location": "https://cdn/x"})
        return httpx.Response(302, headers={"location": "http://plain.example/blob"})

    with pytest.raises(SourceFailed, match="unencrypted"):
        await over(answer, "https://hub.example", tmp_path)


async def test_the_token_is_not_sent_in_clear_text(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(404)

    for endpoint in ("http://hub.example", "https://hub.example"):
        with pytest.raises(SourceNotFound):
            await over(answer, endpoint, tmp_path)
    assert ["authorization" in request.headers for request in seen] == [False, True]


async def over(handler: object, endpoint: str, folder: Path) -> None:
    assert callable(handler)
    hub = Hub(
        endpoint=endpoint,
        token=TOKEN,
        patience=FAST,
        sleep=asyncio.sleep,
        rng=Random(1),
        transport=httpx.MockTransport(handler),
    )
    work = Workspace(folder=folder, meter=Meter(monotonic), free_bytes=disk_free)
    await hub.fetch(SOURCE, work)


def test_an_endpoint_must_be_a_url() -> None:
    with pytest.raises(SourceInvalid, match="HF_ENDPOINT"):
        Hub(endpoint="hub", token=None, patience=FAST, sleep=asyncio.sleep, rng=Random(1))


async def test_a_folder_that_can_not_be_made(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(PullError, match="can't write the weights") as caught:
        await fetch(hub, tmp_path / "models")
    assert str(tmp_path) not in str(caught.value)
