"""Who this agent is: an id that stays, and what its last start was."""

from __future__ import annotations

import secrets
import uuid
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
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / "id"
    try:
        agent_id = str(uuid.UUID(path.read_text().strip()))
    except (FileNotFoundError, ValueError):
        agent_id = str(uuid.uuid4())
        draft = path.with_suffix(".new")
        draft.write_text(agent_id + "\n")
        draft.replace(path)
    return Identity(agent_id, name, int(wall() * 1000), secrets.token_urlsafe(32))


def read_credential(path: Path) -> str | None:
    """Return the credential for the router; None if there is none (yet)."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
