"""What a worker has to do: what the agent sent it, and what others did. Pure."""

from __future__ import annotations

from local_agent.domain import EngineLoad


def total_load(*, sent: int, queued: int, told: EngineLoad | None, sent_then: int) -> EngineLoad:
    """Return the requests that run and that wait, inside the engine and before it.

    An external server has other clients too: what the engine tells beyond what the agent had sent it
    is theirs.

    Args:
        sent: what the agent has in flight there now.
        queued: what waits in the agent.
        told: what the engine told last; None if it told nothing.
        sent_then: what the agent had in flight there when it did.
    """
    if told is None:
        return EngineLoad(running=sent, waiting=queued)
    inside = sent + max(0, told.running + told.waiting - sent_then)
    held_up = min(told.waiting, inside)
    return EngineLoad(running=inside - held_up, waiting=queued + held_up)
