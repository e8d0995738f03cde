"""The agent's own errors; the shared part of the tree is `shared.http.errors`."""

from __future__ import annotations

from shared.http.errors import ApiError, ModelLoading, Unavailable


class ModelUnavailable(Unavailable):
    """The model can't serve now: it failed, it can't run here, or the agent is stopping."""

    origin = "agent"


class ModelOnItsWay(ModelLoading):
    """The model loads, for longer than the request may wait."""

    origin = "agent"


class WorkerGone(Unavailable):
    """The worker ended, under the request or before it; another one is on its way."""

    code = "worker_gone"
    origin = "agent"


class InsufficientMemory(ApiError):
    """The model does not fit beside what has to stay; another agent may have the room."""

    status = 507
    code = "insufficient_memory"
    origin = "agent"
    is_retryable = True


class AgentDraining(Unavailable):
    """The agent finishes what it has, and takes nothing new."""

    code = "draining"
    origin = "agent"
