"""A file that is being downloaded, and what is needed to go on with it after a break."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio.to_thread

from shared.kit.whole_file import write_whole

Append = Callable[[bytes], Awaitable[None]]


class Part:
    """`NAME.part` with the bytes so far, and `NAME.part.json` that says of which file they are."""

    def __init__(self, path: Path) -> None:
        """Look at `path`, which need not exist."""
        self.path = path
        self.storage_etag: str | None = None
        self._notes = path.with_name(f"{path.name}.json")
        self._identity: str | None = None

    def resume(self, identity: str | None) -> int:
        """Keep the bytes if they are of this very file, else drop them; return how many there are.

        Args:
            identity: names the file's content (the hub's etag); None: not known, so start over.
        """
        notes = self._read()
        if identity is None or notes.get("identity") != identity:
            self.restart()
            notes = {}
        self._identity, self.storage_etag = identity, notes.get("storage_etag")
        self._write()
        return self.size()

    def size(self) -> int:
        """Return the bytes that are there."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def restart(self) -> None:
        """Drop the bytes."""
        self.path.unlink(missing_ok=True)
        self.storage_etag = None

    def note_storage(self, etag: str | None) -> None:
        """Keep the storage's etag for `If-Range`; a weak one must not be used there (RFC 9110)."""
        strong = etag if etag and not etag.startswith("W/") else None
        if strong != self.storage_etag:
            self.storage_etag = strong
            self._write()

    def forget(self) -> None:
        """Drop the notes: the file is whole."""
        self._notes.unlink(missing_ok=True)

    def remove(self) -> None:
        """Drop bytes and notes."""
        self.restart()
        self.forget()

    @contextlib.asynccontextmanager
    async def appending(self) -> AsyncIterator[Append]:
        """Open for appending; yields a function that writes a chunk in a thread."""
        with self.path.open("ab") as file:

            async def append(chunk: bytes) -> None:
                await anyio.to_thread.run_sync(file.write, chunk)

            yield append

    def _read(self) -> dict[str, str]:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(notes, dict):
            return {}
        return {key: value for key, value in notes.items() if isinstance(value, str)}

    def _write(self) -> None:
        notes = {"identity": self._identity, "storage_etag": self.storage_etag}
        write_whole(self._notes, json.dumps(notes))
