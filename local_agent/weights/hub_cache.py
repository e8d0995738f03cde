"""Repositories of the hub that were pulled for processes of this host.

They lie as the hub's own library lays them out, so that engines and the user's tools can read them:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache. The library's own cache is another folder,
which is never written to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from local_agent.weights._hub_program import cache_folder


class HubCache:
    """One folder of repositories. Holds nothing in memory."""

    def __init__(self, root: Path) -> None:
        """Use `root`, usually `$IIR_HOME/models/.hub`; it need not exist."""
        self.root = root

    def folder(self, repo: str) -> Path:
        """Return where all revisions of the repository lie."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def find(self, repo: str) -> Path | None:
        """Return the folder with the newest revision's files, or None while they are not all there.

        A revision is made the newest one when the last of its files has been checked.
        """
        snapshot = _newest(self.folder(repo))
        if snapshot is None:
            return None
        files = list(snapshot.rglob("*"))  # links to where the bytes are
        return snapshot if files and all(file.exists() for file in files) else None

    def lock_path(self, repo: str) -> Path:
        """Return the lock that a pull or a removal of the repository holds."""
        return self.root / ".locks" / f"{self.folder(repo).name}.lock"

    def adopt(self, repo: str, other: HubCache) -> None:
        """Give files that another cache holds a second name here, before the first pull.

        That takes no room, and needs both on one disk: else they are downloaded. The pull compares them with
        the hub's digests like its own. Later pulls adopt nothing, or bytes that are wrong would come again.
        """
        folder, theirs = self.folder(repo), other.folder(repo)
        snapshot = None if folder.exists() else _newest(theirs)
        if snapshot is None:
            return
        blobs, known = folder / "blobs", (theirs / "blobs").resolve()
        blobs.mkdir(parents=True)
        for link in snapshot.rglob("*"):
            with contextlib.suppress(OSError, RuntimeError):  # a loop of links is the latter
                blob = link.resolve(strict=True)
                if blob.is_file() and blob.parent == known:
                    os.link(blob, blobs / blob.name)

    def remove(self, repo: str) -> int:
        """Remove all of the repository; return how many bytes were there."""
        folder = self.folder(repo)
        size = sum(path.stat().st_size for path in folder.glob("blobs/*"))
        # first: what is half gone must not count as there
        (folder / "refs" / "main").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return size


def users_cache(env: Mapping[str, str]) -> HubCache | None:
    """Return the cache that the hub's own library uses in this environment; None if nobody can tell."""
    try:
        return HubCache(cache_folder(env).expanduser())
    except RuntimeError:  # there is no home folder
        return None


def _newest(folder: Path) -> Path | None:
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        snapshot = folder / "snapshots" / commit
        return snapshot if commit and snapshot.is_dir() else None
    except (OSError, ValueError):
        return None
