"""Hubs that refuse, lie or have nothing: an error that says what to do, and nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import httpx
import pytest

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
from local_agent.weights.hub import Hub
from local_agent.weights.progress import Meter
from local_agent.weights.source import HubSource
from shared.kit.clock import monotonic
from tests.local_agent.fake_hub import (
    CONTENT,
    FAST,
    MODEL,
    SOURCE,
    TOKEN,
    FakeHub,
    Script,
    fetch,
)


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
