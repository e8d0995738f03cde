"""Which processes an agent has started, on disk: what a later agent needs to find them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

_UNSAFE = re.compile(r"[^a-z0-9._-]")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One started process. `pid` is None from just before the start until just after it.

    `launch` is the digest of how it was started, `birth` and `owner_birth` are of `tree.birth`; records
    of older agents have none of them.
    """

    name: str
    marker: str
    config_hash: str
    port: int
    owner_pid: int
    owner_create_time: float
    pid: int | None = None
    create_time: float | None = None
    launch: str = ""
    birth: str | None = None
    owner_birth: str | None = None


class Records:
    """The pid files of one agent's run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir

    def write(self, record: Record) -> None:
        """Write atomically: a reader sees the old or the new record, never a part."""
        self._dir.mkdir(parents=True, exist_ok=True)
        path = self._path(record.name)
        draft = path.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode(record))
        os.replace(draft, path)  # noqa: PTH105 - the atomic rename by its own name

    def remove(self, name: str) -> None:
        """Remove the record; it is fine if there is none."""
        self._path(name).unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Return every record; files that are none are left alone."""
        found = map(_read, sorted(self._dir.glob("worker-*.json")))
        return [record for record in found if record is not None]

    def _path(self, name: str) -> Path:
        return self._dir / f"{file_stem(name)}.json"


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def file_stem(name: str) -> str:
    """Return a file name without suffix for a model id, which may hold slashes or capitals.

    Two ids never share one, not even on a file system that ignores case.
    """
    safe = _UNSAFE.sub("_", name)[:80]
    if safe == name:
        return f"worker-{safe}"
    return f"worker-{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
