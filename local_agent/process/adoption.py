"""Which recorded process a later agent may take over: decided from what is known of it. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from local_agent.ports import Launch
from local_agent.process.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the system says of a record now.

    `has_owner`: the agent that wrote it may live. `is_leader`: the process with the recorded id is the
    one that was started then. `marker` is the one that this process carries.
    """

    has_owner: bool
    is_leader: bool
    marker: str


def why_not(record: Record, seen: Seen, config_hash: str | None, launch: str | None) -> str | None:
    """Return why the process can't be taken over; None if it can, once it is known to serve.

    Two proofs say that it is ours, its start and its marker: a process id alone proves nothing.

    Args:
        record: what was written when it was started.
        seen: what it is now.
        config_hash: of the configuration that is wanted now; None if its model is not.
        launch: the digest of how it would be started now, with its port and marker.
    """
    reasons = (
        (seen.has_owner, "its agent still runs"),
        (not seen.is_leader, "it has ended"),
        (seen.marker != record.marker, "it does not carry its mark"),
        (config_hash is None, "its model is not configured, or can't run here"),
        (config_hash != record.config_hash, "its configuration has changed"),
        (launch != record.launch, "it would be started in another way now"),
    )
    return next((reason for is_so, reason in reasons if is_so), None)


def digest(launch: Launch, program: tuple[str, ...], marker: str) -> str:
    """Name a way to start a process: two with one digest need no restart between them.

    Args:
        launch: the description.
        program: what stands before its arguments.
        marker: of the worker.
    """
    text = repr((marker, program, launch.argv, launch.cwd, sorted(launch.env.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
