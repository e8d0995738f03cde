"""Who this agent is: an id that stays, and what its last start was."""

from __future__ import annotations

import fcntl
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shared.kit.clock import Clock


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent as the router knows it.

    `incarnation` grows with each start; `access_token` is new with each and is the router's key.
    """

    agent_id: str
    name: str
    incarnation: int
    access_token: str = field(repr=False)


def load_identity(state_dir: Path, name: str, wall: Clock) -> Identity:
    """Return the identity kept in `state_dir`, made at the first start.

    Raises:
        OSError: the folder can't be written.
    """
    agent_id = load_agent_id(state_dir)
    incarnation = _next_incarnation(state_dir / "incarnation", wall)
    return Identity(agent_id, name, incarnation, secrets.token_urlsafe(32))


def load_agent_id(state_dir: Path) -> str:
    """Return the id kept in `state_dir`, made when it is needed for the first time.

    Raises:
        OSError: the folder can't be written.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / "id"
    try:
        return str(uuid.UUID(path.read_text(encoding="ascii").strip()))
    except (FileNotFoundError, ValueError):
        agent_id = str(uuid.uuid4())
        _write(path, agent_id)
        return agent_id


class IdentityTaken(Exception):
    """Another agent runs with this identity."""


@contextmanager
def hold_identity(state_dir: Path) -> Iterator[None]:
    """Let no second agent run with the identity in `state_dir` as long as the context is open.

    Two of them would end each other's leases and lose track of each other's workers. The lock goes
    with the process, however that ends.

    Raises:
        IdentityTaken: one runs already.
        OSError: the folder can't be written.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IdentityTaken from None
        yield


def _next_incarnation(path: Path, wall: Clock) -> int:
    """Return milliseconds since 1970, or more: a clock that was set back must not make us older."""
    try:
        last = int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        last = 0
    incarnation = max(int(wall() * 1000), last + 1)
    _write(path, str(incarnation))
    return incarnation


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(text + "\n", encoding="ascii")
    draft.replace(path)
