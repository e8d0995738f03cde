"""The service's file on disk, and the log beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from local_agent.service.own_log import MOST_BYTES


def write(path: Path, content: bytes) -> bool:
    """Write the file whole or not at all; tell whether that changed anything.

    Raises:
        OSError: its folder can't be written.
    """
    if read(path) == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(content)
    draft.chmod(0o644)
    draft.replace(path)
    return True


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[bool]:
    """Write the file, and put back what was there if what is done with it fails; tell whether it is new.

    A LaunchAgent that launchd refused now would be taken at the next login.

    Raises:
        OSError: its folder can't be written.
    """
    before = read(path)
    is_new = write(path, content)
    try:
        yield is_new
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write(path, before)
        raise


def read(path: Path) -> bytes | None:
    """Return what the file holds; None if there is none, or nobody may read it."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def make_room(log: Path, most_bytes: int = MOST_BYTES) -> None:
    """Begin a new log if the old one has grown large, as an agent that runs does by itself.

    Raises:
        OSError: the folder of logs can't be made.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if log.stat().st_size > most_bytes:
            log.replace(log.with_name(f"{log.name}.1"))
