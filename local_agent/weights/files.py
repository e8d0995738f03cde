"""What pulls do to files: hash, check, write atomically, lock. Blocking, so run in threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local_agent.weights.errors import (
    AlreadyPulling,
    ChecksumMismatch,
    NotEnoughSpace,
    NotGguf,
    WriteFailed,
)
from local_agent.weights.progress import Meter, gigabytes

FreeBytes = Callable[[Path], int]

TOO_LARGE = "not enough disk space: {needed} needed, {free} free; free some, or set IIR_HOME to a larger disk"
DISK_FULL = "the disk is full: free some space and pull again"

STEP_BYTES = 4 * 1024 * 1024
_RESERVE = 0.05
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What a source is fetched with: the model's folder, the meter, and the disk's free bytes."""

    folder: Path
    meter: Meter
    free_bytes: FreeBytes

    def require_space(self, needed: int) -> None:
        """Check that `needed` bytes and 5 % more fit.

        Raises:
            NotEnoughSpace: with both numbers.
        """
        wanted = int(needed * (1 + _RESERVE))
        free = self.free_bytes(self.folder)
        if free < wanted:
            raise NotEnoughSpace(TOO_LARGE.format(needed=gigabytes(wanted), free=gigabytes(free)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a source gave: a file (or a link) in the model's folder, not yet under its name.

    `is_checked` says whether there was a checksum to compare with.
    """

    path: Path
    name: str
    sha256: str | None
    size_bytes: int
    is_checked: bool


def disk_free(folder: Path) -> int:
    """Return the bytes that this user may still write there."""
    return shutil.disk_usage(folder).free


def copy_steps(
    source: IO[bytes], target: Path, *, most: int | None = None
) -> Generator[int, None, str]:
    """Copy a stream to a new file, yield the bytes of each step, return the SHA-256.

    Raises:
        WriteFailed: `source` holds more than `most` bytes.
    """
    digest, total = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := source.read(STEP_BYTES):
            total += len(chunk)
            if most is not None and total > most:
                raise WriteFailed("the file is larger than its own header says")
            digest.update(chunk)
            file.write(chunk)
            yield len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def hash_steps(path: Path) -> Generator[int, None, str]:
    """Read a file, yield the bytes of each step, return the SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(STEP_BYTES):
            digest.update(chunk)
            yield len(chunk)
    return digest.hexdigest()


def check_digest(actual: str, expected: str, what: str) -> None:
    """Compare two hex digests.

    Raises:
        ChecksumMismatch: they differ.
    """
    if actual != expected:
        raise ChecksumMismatch(
            f"the checksum of {what} is wrong (sha256 {actual[:12]}…, expected {expected[:12]}…)"
        )


def check_gguf_name(name: str) -> None:
    """Check, before anything is downloaded, that an engine here could run the file.

    Raises:
        NotGguf: it is of another kind.
    """
    if not name.lower().endswith(".gguf"):
        raise NotGguf(
            f"{name} can't be run here: engines of this agent load single files that are .gguf only"
        )


def check_gguf(path: Path, name: str) -> None:
    """Check a file's ending and its magic bytes.

    Raises:
        NotGguf: it is not named, or does not start, like one.
    """
    check_gguf_name(name)
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise NotGguf(f"{name} is not a GGUF file (its first bytes are not 'GGUF')")


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[int]:
    """Hold a lock file; it is free again when the process ends, however it ends.

    The number of the open file is given: a child that inherits it holds the lock as well.

    Raises:
        AlreadyPulling: somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            raise AlreadyPulling(
                f"the weights of {what} are being pulled or removed by another process: wait for it"
            ) from None
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the disk refuses into a `WriteFailed` without host paths."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WriteFailed(DISK_FULL) from error
        reason = error.strerror or type(error).__name__
        raise WriteFailed(f"can't write the weights: {reason}") from error
