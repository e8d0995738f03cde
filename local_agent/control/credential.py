"""The agent's credential: one file, readable by its owner only, whole or not there.

Its first line is the credential. `iir-agent join` adds a second, `router=URL`: whose it is. Both in one
file, so that a crash can never pair a credential with another router.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_ROUTER = "router="
_MOST_BYTES = 4096
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Credential:
    """What the file holds; `router_url` is None where it does not say."""

    secret: str = field(repr=False)
    router_url: str | None = None


def load_credential(path: Path) -> Credential | None:
    """Return what the file holds; None if there is none (yet), or nothing readable."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).decode("ascii").strip().splitlines()
    except (OSError, ValueError):
        return None
    if not lines or len(lines) > 2:
        return None
    words = [line.strip() for line in lines]
    if not all(word.isprintable() and word and " " not in word for word in words):
        return None
    if len(words) == 1:
        return Credential(words[0])
    if not words[1].startswith(_ROUTER):
        return None
    return Credential(words[0], words[1].removeprefix(_ROUTER))


def is_exposed(path: Path) -> bool:
    """Tell whether other users of this machine may read the file."""
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False


def save_credential(path: Path, credential: Credential) -> None:
    """Put the credential into the file, in one step that a crash does not undo.

    Raises:
        OSError: the file can't be written; what was there stays.
    """
    text = f"{credential.secret}\n"
    if credential.router_url is not None:
        text += f"{_ROUTER}{credential.router_url}\n"
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(path.parent)


def is_same_router(one: str, other: str) -> bool:
    """Tell whether two URLs name the same router, as far as their text shows."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str, int | None, str]:
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port, parts.path.rstrip("/")


def _sync_folder(folder: Path) -> None:
    """Let the new name last: the router may end the old credential a moment later."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
