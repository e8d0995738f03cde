"""Files of a model hub over HTTP: resumed, bounded in retries, checked over the whole file.

The hub answers `HEAD {endpoint}/{org}/{repo}/resolve/main/{file}` with the size and the SHA-256 of
large files (`X-Linked-Size`, `X-Linked-ETag`), and redirects a GET to its storage. Source:
huggingface_hub's `file_download.py` and the hub's answers as its documentation describes them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import httpx

from local_agent.weights.errors import (
    AccessDenied,
    PullError,
    SourceFailed,
    SourceInvalid,
    SourceNotFound,
    SourceUnreachable,
)
from local_agent.weights.files import Fetched, Workspace, check_digest, check_gguf_name, hash_steps
from local_agent.weights.part import Part
from local_agent.weights.progress import Meter, Phase, in_thread
from local_agent.weights.source import HubSource
from shared.kit.backoff import backoff_s

Sleep = Callable[[float], Awaitable[None]]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MOST_REDIRECTS = 5
_TRY_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """What the hub says of a file before it is downloaded."""

    size_bytes: int | None
    sha256: str | None
    etag: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download goes on against a bad network.

    `tries` in a row without `progress_bytes` of progress end it; a connection that is silent for
    `stall_s` counts as broken. A hub that does not answer at all gets `first_tries`.
    """

    tries: int = 5
    first_tries: int = 3
    progress_bytes: int = 1024 * 1024
    first_wait_s: float = 1.0
    most_wait_s: float = 30.0
    connect_s: float = 10.0
    stall_s: float = 60.0


class _Broken(Exception):
    """The connection or the answer broke off; another try may go on from there."""


class Hub:
    """Downloads from one hub. The token goes to the hub's own origin only."""

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        patience: Patience,
        sleep: Sleep,
        rng: Random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare for `endpoint`, a base URL; nothing is sent yet.

        Raises:
            SourceInvalid: the endpoint is no http(s) URL.
        """
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SourceInvalid("HF_ENDPOINT must be an http(s) URL")
        self._endpoint = endpoint.rstrip("/")
        self._is_encrypted = parts.scheme == "https"
        may_send_token = self._is_encrypted or parts.hostname in _LOOPBACK
        self._token = (token or "").strip() if may_send_token else ""
        self._patience = patience
        self._sleep = sleep
        self._rng = rng
        self._transport = transport

    async def fetch(self, source: HubSource, work: Workspace) -> Fetched:
        """Download the file into the model's folder, or go on with a part of it that is there.

        Raises:
            PullError: by cause.
        """
        check_gguf_name(source.file_name)
        part = Part(work.folder / f"{source.file_name}.part")
        try:
            async with self._client() as client:
                facts = await self._stat(client, source, work.meter)
                self._prepare(source, facts, part, work)
                await self._download(client, source, facts, part, work.meter)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceFailed(f"the hub's answer makes no sense ({_cause(error)})") from error
        work.meter.begin(Phase.VERIFYING, total=part.size())
        digest = await in_thread(hash_steps(part.path), work.meter)
        self._check(part, digest, (source.sha256, facts.sha256), source.file_name)
        return Fetched(
            path=part.path,
            name=source.file_name,
            sha256=digest,
            size_bytes=part.size(),
            is_checked=(source.sha256 or facts.sha256) is not None,
        )

    def _prepare(self, source: HubSource, facts: HubFile, part: Part, work: Workspace) -> None:
        """Decide from the part that is there what is left to download, and check the disk."""
        size = facts.size_bytes
        have = part.resume(f"{source.ref} {facts.etag} {size}" if facts.etag else None)
        if size is not None and have > size:
            part.restart()
        total = size or source.size_bytes
        work.require_space(max((total or 0) - part.size(), 0))
        work.meter.begin(Phase.DOWNLOADING, total=total, done=part.size())

    def _check(
        self, part: Part, digest: str, expected: tuple[str | None, str | None], name: str
    ) -> None:
        try:
            for wanted in expected:
                if wanted is not None:
                    check_digest(digest, wanted, name)
        except PullError:
            part.remove()
            raise
        part.forget()

    def _client(self) -> httpx.AsyncClient:
        wait = self._patience
        headers = {"accept-encoding": "identity", "user-agent": "intelligent-inference-router"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(wait.stall_s, connect=wait.connect_s),
            max_redirects=_MOST_REDIRECTS,
            event_hooks={"request": [self._refuse_downgrade]},
            transport=self._transport,
        )

    async def _refuse_downgrade(self, request: httpx.Request) -> None:
        if self._is_encrypted and request.url.scheme != "https":
            raise SourceFailed("the hub redirects to an unencrypted address: refused")

    def _url(self, source: HubSource) -> str:
        return f"{self._endpoint}/{source.repo}/resolve/main/{quote(source.file)}"

    async def _stat(self, client: httpx.AsyncClient, source: HubSource, meter: Meter) -> HubFile:
        """Ask for size and checksum; redirects are followed within the hub only."""
        url, failures, redirects = self._url(source), 0, 0
        while True:
            try:
                response = await client.head(url)
                _raise_for(response, source)
            except (_Broken, httpx.TransportError) as error:
                failures += 1
                await self._wait(failures, self._patience.first_tries, error, meter)
                continue
            target = urljoin(url, response.headers.get("location", ""))
            is_moved = response.is_redirect and "x-linked-size" not in response.headers
            if not is_moved or urlsplit(target).netloc != urlsplit(url).netloc:
                return _facts(response)
            redirects += 1
            if redirects > _MOST_REDIRECTS:
                raise SourceFailed("the hub redirects in circles")
            url = target

    async def _download(
        self, client: httpx.AsyncClient, source: HubSource, facts: HubFile, part: Part, meter: Meter
    ) -> None:
        failures, best = 0, part.size()
        if part.size() == facts.size_bytes:
            return
        while (broken := await self._try(client, source, facts, part, meter)) is not None:
            if part.size() - best >= self._patience.progress_bytes:
                failures, best = 0, part.size()
            failures += 1
            await self._wait(failures, self._patience.tries, broken, meter)

    async def _try(
        self, client: httpx.AsyncClient, source: HubSource, facts: HubFile, part: Part, meter: Meter
    ) -> Exception | None:
        """Download once; return what broke it, None when the file is whole."""
        try:
            await self._stream(client, source, facts, part, meter)
        except (_Broken, httpx.TransportError) as error:
            return error
        return None

    async def _stream(
        self, client: httpx.AsyncClient, source: HubSource, facts: HubFile, part: Part, meter: Meter
    ) -> None:
        offset = part.size()
        headers = {"range": f"bytes={offset}-"} if offset else {}
        if offset and part.storage_etag:
            headers["if-range"] = part.storage_etag
        async with client.stream(
            "GET", self._url(source), headers=headers, follow_redirects=True
        ) as response:
            self._begin(response, source, facts, part, meter)
            await self._receive(response, facts, part, meter)
        if facts.size_bytes is not None and part.size() < facts.size_bytes:
            raise _Broken("the answer ended early")

    def _begin(
        self,
        response: httpx.Response,
        source: HubSource,
        facts: HubFile,
        part: Part,
        meter: Meter,
    ) -> None:
        """Check that the answer goes on where the part ends, else start the part over."""
        if response.status_code == 416:
            part.restart()
            raise _Broken("the hub does not know this part of the file")
        _raise_for(response, source)
        if response.status_code not in {200, 206}:
            raise SourceFailed(f"the hub answered with status {response.status_code}")
        start = _start(response)
        if start != part.size():
            part.restart()
            if start != 0:
                raise _Broken("the hub sent another part of the file")
        part.note_storage(response.headers.get("etag"))
        total = facts.size_bytes or source.size_bytes
        meter.begin(Phase.DOWNLOADING, total=total, done=part.size())

    async def _receive(
        self, response: httpx.Response, facts: HubFile, part: Part, meter: Meter
    ) -> None:
        async with part.appending() as append:
            async for chunk in response.aiter_raw():
                meter.add(len(chunk))
                if facts.size_bytes is not None and meter.done > facts.size_bytes:
                    raise SourceFailed("the hub sends more bytes than it announced")
                await append(chunk)

    async def _wait(self, failures: int, most: int, error: Exception, meter: Meter) -> None:
        wait = self._patience
        if failures >= most:
            kept = "; what is there is kept, the same command goes on from it" if meter.done else ""
            raise SourceUnreachable(
                f"the hub can't be reached or breaks off ({_cause(error)}, {failures} tries): check "
                f"the network, or set HF_ENDPOINT to a mirror{kept}"
            ) from error
        meter.show(Phase.WAITING)
        await self._sleep(
            backoff_s(failures, self._rng, first_s=wait.first_wait_s, most_s=wait.most_wait_s)
        )


def _raise_for(response: httpx.Response, source: HubSource) -> None:
    """Turn a status that is no success into an error; redirects pass.

    Raises:
        _Broken: another try may help.
        PullError: it won't.
    """
    status, code = response.status_code, response.headers.get("x-error-code", "")
    if status < 400:
        return
    if status in _TRY_AGAIN:
        raise _Broken(f"status {status}")
    if status in {401, 403}:
        page = f"https://huggingface.co/{source.repo}"
        missing = " (or there is no such repository)" if code != "GatedRepo" else ""
        raise AccessDenied(
            f"{source.repo} is gated or private{missing}: accept the licence at {page} and set "
            "HF_TOKEN"
        )
    if status == 404:
        what = "repository" if code == "RepoNotFound" else "file"
        raise SourceNotFound(f"the hub has no such {what}: {source.repo}, {source.file}")
    raise SourceFailed(f"the hub answered with status {status}")


def _facts(response: httpx.Response) -> HubFile:
    headers = response.headers
    size = headers.get("x-linked-size")
    if size is None and not response.is_redirect:
        size = headers.get("content-length")
    etag = headers.get("x-linked-etag") or headers.get("etag")
    digest = (etag or "").removeprefix("W/").strip('"')
    return HubFile(
        size_bytes=int(size) if size is not None and size.isdecimal() else None,
        sha256=digest if _SHA256.fullmatch(digest) else None,
        etag=etag,
    )


def _start(response: httpx.Response) -> int | None:
    """Return the offset that the answer starts at; None if it does not say."""
    if response.status_code != 206:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _cause(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return str(error) if isinstance(error, _Broken) else "connection broken"
