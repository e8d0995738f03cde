"""Asking whether a router listens on a port, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_TIMEOUT_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered; `problem` is what a router said of its registry, if it is not well."""

    kind: Literal["ready", "unready", "stranger", "nobody"]
    problem: str | None = None


def probe_router(host: str, port: int) -> Answer:
    """Return who answers `/readyz` on an address and port."""
    import httpx  # noqa: PLC0415 - slow to load, and most commands do without

    address = _ANY_ADDRESS.get(host, host)
    authority = f"[{address}]" if ":" in address else address
    try:
        # No proxy from the environment: the question is about this very machine.
        with httpx.Client(trust_env=False, timeout=_TIMEOUT_S) as client:
            reply = client.get(f"http://{authority}:{port}/readyz")
            body = reply.json()
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return Answer("nobody")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return Answer("stranger")
    if reply.status_code not in {200, 503} or not isinstance(body, dict) or "registry" not in body:
        return Answer("stranger")
    registry = str(body["registry"])
    kind: Literal["ready", "unready"] = "ready" if reply.status_code == 200 else "unready"
    return Answer(kind, None if registry == "ok" else registry)
