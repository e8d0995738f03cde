"""A file that holds one key or credential: readable by its owner only, whole or not there."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from router.store.errors import SecretFileUnusable
from router.store.keys import parse_prefix

_MOST_BYTES = 4096


def read_secret(path: Path, what: str) -> str | None:
    """Return what the file holds, None if there is no file; make the file private.

    Args:
        path: the file.
        what: whose it is, for messages (`token file`).

    Raises:
        SecretFileUnusable: the file can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        path.chmod(0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SecretFileUnusable(f"the {what} can't be read: {error.strerror}") from None
    # a second line is the agent's own: which router it has joined
    secret = content.decode("utf-8", "replace").strip().split("\n", 1)[0].strip()
    if parse_prefix(secret) is None:
        raise SecretFileUnusable(f"the {what} holds no credential; move it away, or name another")
    return secret


def write_secret(path: Path, secret: str, what: str) -> None:
    """Put the secret into the file, in one step; see `read_secret`.

    Raises:
        SecretFileUnusable: the file can't be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise SecretFileUnusable(f"the {what} can't be written: {error.strerror}") from None
