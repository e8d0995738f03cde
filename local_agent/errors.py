"""The agent's own errors; the shared part of the tree is `shared.http.errors`."""

from __future__ import annotations

from shared.http.errors import Unavailable


class WorkerGone(Unavailable):
    """The worker ended under the request; another one is on its way."""

    code = "worker_gone"
    origin = "agent"
