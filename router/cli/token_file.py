"""The file that holds an agent's credential: readable by its owner only, whole or not there."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from router.cli.output import CommandFailed
from router.store.keys import parse_prefix

_MOST_BYTES = 4096


def read_credential(path: Path) -> str | None:
    """Return the credential in the file, None if there is no file; make the file private.

    Raises:
        CommandFailed: the file can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        path.chmod(0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandFailed(f"the token file can't be read: {error.strerror}") from None
    # a second line is the agent's own: which router it has joined
    credential = content.decode("utf-8", "replace").strip().split("\n", 1)[0].strip()
    if parse_prefix(credential) is None:
        raise CommandFailed("the token file holds no credential; move it away, or name another")
    return credential


def write_credential(path: Path, credential: str) -> None:
    """Put the credential into the file, in one step.

    Raises:
        CommandFailed: the file can't be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{credential}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise CommandFailed(f"the token file can't be written: {error.strerror}") from None
