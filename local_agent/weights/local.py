"""Weights that are on this host already: linked, never copied."""

from __future__ import annotations

import os

from local_agent.weights.errors import SourceFailed, SourceNotFound
from local_agent.weights.files import Fetched, Workspace, check_digest, check_gguf, hash_steps
from local_agent.weights.progress import Phase, in_thread
from local_agent.weights.source import LocalSource

_LINK = ".link.part"


async def fetch_local(source: LocalSource, work: Workspace) -> Fetched:
    """Link the file into the model's folder, so that all weights are found in one place.

    A symbolic link, because the file may be on another disk, and costs no space. If the file goes,
    the weights count as not pulled.

    Raises:
        SourceNotFound: there is no such file.
        SourceFailed: it can't be read.
        NotGguf, ChecksumMismatch: it is not what it should be.
    """
    name = source.path.name
    if not source.path.is_file():
        raise SourceNotFound(f"there is no file {name} at this path")
    if not os.access(source.path, os.R_OK):
        raise SourceFailed(f"{name} can't be read: check its permissions")
    check_gguf(source.path, name)
    size = source.path.stat().st_size
    is_checked = source.sha256 is not None
    if source.sha256 is not None:
        work.meter.begin(Phase.VERIFYING, total=size)
        check_digest(await in_thread(hash_steps(source.path), work.meter), source.sha256, name)
    link = work.folder / _LINK
    link.unlink(missing_ok=True)
    link.symlink_to(source.path)
    return Fetched(
        path=link, name=name, sha256=source.sha256, size_bytes=size, is_checked=is_checked
    )
