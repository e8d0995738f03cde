"""How this program asks the agent that runs on the same machine."""

from __future__ import annotations

import httpx


def local_client(timeout: float | httpx.Timeout) -> httpx.Client:
    """Return a client for plain http on this machine.

    It takes no proxy, and loads no certificates, which would take longer than the question.

    Args:
        timeout: in seconds, or httpx's own.
    """
    return httpx.Client(trust_env=False, timeout=timeout, verify=False)  # noqa: S501 - see above
