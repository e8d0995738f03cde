"""Pulls a repository of the hub into its cache, or removes it: runs by itself, on a host or in a container.

An interpreter runs it, of the agent or of an engine's image, with a repository's name in the environment;
it needs nothing but the standard library. The cache is laid out as huggingface_hub does it
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache), so that engines find what lies there.
huggingface_hub itself is not used, since it drops the bytes of a file that was not finished.

It writes one JSON object a line: `{"phase", "done", "total"}`, in the end `{"result"}` or `{"error"}`.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

_STEP_BYTES = 4 * 1024 * 1024
_REPORT_EVERY_S, _SILENT_S = 0.25, 60.0
_FIRST_TRIES, _TRIES = 3, 5
_PROGRESS_BYTES = 1024 * 1024
_FIRST_WAIT_S, _WAIT_FACTOR = 0.2, 3
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_RESERVE = 1.05
_HEX = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_LOADED = "original/*"


class Failure(Exception):
    """Why it ends; the agent has the words for each kind."""

    def __init__(self, kind: str, **details: object) -> None:
        super().__init__(kind)
        self.values = {"kind": kind, **details}


class Broken(Exception):
    """The connection broke; another try may go on from there."""


class File:
    """One file of the repository: `digest` is its SHA-256 if it is large, else git's."""

    def __init__(self, values: dict[str, Any], blobs: Path) -> None:
        lfs = values.get("lfs") or {}
        self.name = str(values["rfilename"])
        self.size = int(values.get("size") or lfs.get("size") or 0)
        self.is_large = bool(lfs)
        self.digest = str(lfs.get("sha256") or values.get("blobId") or "")
        if not _HEX.fullmatch(self.digest) or {"", ".", ".."} & set(self.name.split("/")):
            raise Failure("senseless")
        self.blob = blobs / self.digest
        self.part = blobs / f"{self.digest}.incomplete"

    def have(self) -> int:
        """Return how many bytes of it are here."""
        return self.size if self.blob.exists() else size_of(self.part)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the token from other hosts, and everything from unencrypted ones."""

    def redirect_request(self, req: Any, *args: Any) -> urllib.request.Request | None:
        """Follow a redirect; the token goes along to the hub's own origin only."""
        made = super().redirect_request(req, *args)
        if made is None:
            return None
        before, after = urlsplit(req.full_url), urlsplit(made.full_url)
        if before.scheme == "https" and after.scheme != "https":
            raise Failure("unencrypted")
        made.remove_header("Authorization")
        token = req.unredirected_hdrs.get("Authorization")
        if token is not None and before.netloc == after.netloc:
            made.add_unredirected_header("Authorization", token)
        return made


class Hub:
    """Asks one hub."""

    def __init__(self, endpoint: str, token: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"}:
            raise Failure("senseless")
        is_safe = parts.scheme == "https" or parts.hostname in {"127.0.0.1", "localhost", "::1"}
        self._token = token if is_safe else ""
        self._opener = urllib.request.build_opener(Redirects)

    def open(self, path: str, start: int = 0) -> Any:
        """Return the answer to a GET, from byte `start` on.

        Raises:
            Broken: another try may help.
            Failure: it won't.
        """
        url = f"{self._endpoint}{path}"
        plain = {"User-Agent": "intelligent-inference-router", "Accept-Encoding": "identity"}
        request = urllib.request.Request(url, headers=plain)  # noqa: S310 - see __init__
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            return self._opener.open(request, timeout=_SILENT_S)
        except urllib.error.HTTPError as error:
            error.close()
            raise refused(error.code) from None
        except (OSError, http.client.HTTPException) as error:
            raise Broken(cause_of(error)) from None

    def read(self, path: str) -> bytes:
        """Return a small file, after a few tries.

        Raises:
            Failure: it can't be had.
        """
        for failures in range(1, _FIRST_TRIES + 1):
            try:
                with self.open(path) as answer:
                    return bytes(answer.read())
            except (Broken, OSError, http.client.HTTPException) as error:
                cause = str(error) if isinstance(error, Broken) else cause_of(error)
            if failures < _FIRST_TRIES:
                rest(failures)
        raise Failure("unreachable", cause=cause, is_resumable=False)


def refused(status: int) -> Exception:
    """Return what a status that is no success means."""
    if status in _TRY_AGAIN:
        return Broken(f"status {status}")
    kind = {401: "denied", 403: "denied", 404: "not_found"}.get(status, "status")
    return Failure(kind, status=status)


def cause_of(error: Exception) -> str:
    """Name a broken connection without addresses."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    return "no connection" if isinstance(error, urllib.error.URLError) else "connection broken"


def rest(failures: int) -> None:
    """Wait before another try, longer each time."""
    say(phase="waiting")
    time.sleep(_FIRST_WAIT_S * _WAIT_FACTOR ** (failures - 1))


def say(**values: object) -> None:
    """Write one line; where nobody reads any more, nobody wants the rest."""
    try:
        print(json.dumps(values), flush=True)  # noqa: T201 - this is how it speaks
    except BrokenPipeError:
        os._exit(1)  # whichever thread this is


class Progress:
    """Writes how far it is: at both ends, and each time that news is a quarter of a second old."""

    def __init__(self, phase: str, total: int, done: int) -> None:
        self._values: dict[str, object] = {"phase": phase, "total": total}
        self._done = done
        self._said: int | None = None
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:  # noqa: PYI034 - typing has no Self in 3.10
        self._say()
        self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._ticker.join()
        self._say()

    def add(self, count: int) -> None:
        """Count more bytes (fewer, if what was there is of no use)."""
        self._done += count

    def _tick(self) -> None:
        while not self._over.wait(_REPORT_EVERY_S):
            self._say()

    def _say(self) -> None:
        done = self._done
        if done != self._said:
            self._said = done
            say(**self._values, done=done)


def pull(hub: Hub, repo: str, folder: Path) -> dict[str, object]:
    """Make the repository's newest files be there; return their size, and whether all was checked."""
    say(phase="checking")
    try:
        info = json.loads(hub.read(f"/api/models/{repo}/revision/main?blobs=true"))
        commit, siblings = str(info["sha"]), info["siblings"]
        listed = [str(each["rfilename"]) for each in siblings]
    except Failure as failure:
        size = size_of_whole(folder) if failure.values["kind"] == "unreachable" else None
        if size is None:
            raise
        return {"size": size, "is_checked": False}
    except (ValueError, LookupError, TypeError):
        raise Failure("senseless") from None
    if not _HEX.fullmatch(commit):
        raise Failure("senseless")
    source = f"/{repo}/resolve/{commit}/"
    names = chosen(listed, hub.read(source + _INDEX) if _INDEX in listed else b"")
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    files = [File(each, blobs) for each in siblings if each["rfilename"] in names]
    fetch_all(hub, source, files, folder)
    verify_all(files, folder / "iir-verified")
    link_all(files, folder, commit)
    return {"size": sum(file.size for file in files), "is_checked": True}


def chosen(listed: Iterable[str], index: bytes) -> set[str]:
    """Return the files that an engine loads: weights in one format, and what stands beside them."""
    names = [name for name in listed if not fnmatch.fnmatch(name, _NOT_LOADED)]
    weights = set(json.loads(index)["weight_map"].values()) if index else set()
    for pattern in _WEIGHTS:
        weights = weights or set(fnmatch.filter(names, pattern))
    if not weights:
        raise Failure("no_weights")
    return weights.union(*(fnmatch.filter(names, pattern) for pattern in _BESIDE))


def fetch_all(hub: Hub, source: str, files: list[File], folder: Path) -> None:
    """Download what is missing, after a look at the disk."""
    total = sum(file.size for file in files)
    have = sum(file.have() for file in files)
    needed, free = int((total - have) * _RESERVE), shutil.disk_usage(folder).free
    if free < needed:
        raise Failure("space", needed=needed, free=free)
    with Progress("downloading", total, have) as progress:
        for file in files:
            if not file.blob.exists():
                fetch(hub, source + quote(file.name), file, progress)


def fetch(hub: Hub, path: str, file: File, progress: Progress) -> None:
    """Download a file, or go on with its part, through breaks of the connection."""
    file.part.touch()
    failures, best = 0, size_of(file.part)
    while size_of(file.part) < file.size:
        try:
            receive(hub, path, file, progress)
            cause = "the answer ended early"
        except Broken as broken:
            cause = str(broken)
        have = size_of(file.part)
        if have >= file.size:
            return
        if have - best >= _PROGRESS_BYTES:
            failures, best = 0, have
        failures += 1
        if failures >= _TRIES:
            raise Failure("unreachable", cause=cause, is_resumable=True)
        rest(failures)


def receive(hub: Hub, path: str, file: File, progress: Progress) -> None:
    """Append what one answer brings."""
    start = size_of(file.part)
    with hub.open(path, start) as answer, file.part.open("r+b") as part:
        if start and answer.status != 206:
            progress.add(-start)
            start = 0
        part.truncate(start)
        part.seek(start)
        while True:
            try:
                chunk = answer.read1(_STEP_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(cause_of(error)) from None
            if not chunk:
                return
            start += len(chunk)
            if start > file.size:
                raise Failure("senseless")
            part.write(chunk)
            progress.add(len(chunk))


def verify_all(files: list[File], note: Path) -> None:
    """Compare each file with the digest that the hub tells, once; a wrong one is removed."""
    known = set(note.read_text().split()) if note.exists() else set()
    new = [file for file in files if file.digest not in known or not file.blob.exists()]
    with Progress("verifying", sum(file.size for file in new), 0) as progress:
        for file in new:
            verify(file, progress)
    note.write_text("\n".join(sorted(known | {file.digest for file in new})))


def verify(file: File, progress: Progress) -> None:
    """Give a file its final name if its digest is right, else remove it."""
    path = file.blob if file.blob.exists() else file.part
    digest = hashlib.sha256() if file.is_large else hashlib.sha1()  # noqa: S324 - git's own
    if not file.is_large:
        digest.update(b"blob %d\0" % file.size)
    with path.open("rb") as source:
        while step := source.read(_STEP_BYTES):
            digest.update(step)
            progress.add(len(step))
    if digest.hexdigest() != file.digest:
        path.unlink()
        raise Failure("checksum", file=file.name)
    path.replace(file.blob)


def link_all(files: list[File], folder: Path, commit: str) -> None:
    """Give the files their names, and make this the newest revision."""
    for file in files:
        link = folder / "snapshots" / commit / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        draft = link.with_name(f"{link.name}.new")
        draft.unlink(missing_ok=True)
        draft.symlink_to(os.path.relpath(file.blob, link.parent))
        draft.replace(link)
    (folder / "refs").mkdir(exist_ok=True)
    (draft := folder / "refs" / "main.new").write_text(commit)
    draft.replace(folder / "refs" / "main")


def size_of_whole(folder: Path) -> int | None:
    """Return the size of what lies in the cache, if it is whole: a hub that is away can't be asked."""
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        snapshot = folder / "snapshots" / commit
        index = snapshot / _INDEX
        present = [path for path in snapshot.rglob("*") if path.is_file()]
        names = {str(path.relative_to(snapshot)) for path in present}
        wanted = chosen(names, index.read_bytes() if index.is_file() else b"")
    except (OSError, ValueError, Failure):
        return None
    is_whole = commit and wanted <= names and "config.json" in names
    return sum(path.stat().st_size for path in present) if is_whole else None


def size_of(path: Path) -> int:
    """Return a file's size; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return where huggingface_hub has its cache in this environment."""
    if named := env.get("HF_HUB_CACHE"):
        return Path(named)
    if home := env.get("HF_HOME"):
        return Path(home) / "hub"
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def main(env: Mapping[str, str]) -> int:
    """Do what the environment says: `IIR_TASK` is `pull` or `remove`, `IIR_REPO` the repository."""
    repo = env["IIR_REPO"]
    folder = cache_folder(env) / f"models--{repo.replace('/', '--')}"
    endpoint, token = env.get("HF_ENDPOINT") or "https://huggingface.co", env.get("HF_TOKEN", "")
    try:
        if env["IIR_TASK"] == "remove":
            size = sum(size_of(path) for path in folder.glob("blobs/*"))
            shutil.rmtree(folder, ignore_errors=True)
            say(result={"size": size, "is_checked": True})
        else:
            say(result=pull(Hub(endpoint, token.strip()), repo, folder))
    except Failure as failure:
        say(error=failure.values)
        return 1
    except OSError as error:
        kind = "full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "disk"
        say(error={"kind": kind, "reason": error.strerror})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))  # noqa: TID251 - a program of its own
