"""The agent that runs on this host, if one does: its lease and its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from local_agent.doctor.finding import Finding, Level
from local_agent.local_http import local_client

_TIMEOUT_S = 3.0
_LEASES: dict[str, tuple[Level, str, str | None]] = {
    "held": ("ok", "it holds a lease with its router", None),
    "starting": ("note", "it has not asked its router for a lease yet", "try again in a moment"),
    "released": ("note", "it is stopping", None),
    "no_credential": ("note", "it has no credential, so no router knows it", "iir-agent join URL"),
    "router_away": ("problem", "its router does not answer it", "see `router`"),
    "refused": ("problem", "its router refuses it", "see `credential`; its log names the reason"),
    "superseded": (
        "problem",
        "a newer start of this agent has taken its lease",
        "stop the other agent with this IIR_HOME, or a copy of it; then restart this one",
    ),
}


@dataclass(frozen=True, slots=True)
class RunningState:
    """What a running agent says of itself in `/readyz`."""

    base_url: str
    status: str
    lease: str
    lease_problem: str
    config: str


def find_running(base_urls: Sequence[str]) -> RunningState | None:
    """Return the agent at the first of these addresses that answers like one."""
    with local_client(_TIMEOUT_S) as client:
        for base_url in base_urls:
            state = _ask(client, base_url)
            if state is not None:
                return state
    return None


def examine_running(state: RunningState | None) -> Iterator[Finding]:
    """Yield how the running agent is."""
    if state is None:
        yield Finding("agent", "note", "no agent runs here", "iir-agent serve")
        return
    if state.status == "ready":
        yield Finding("agent", "ok", f"it runs at {state.base_url}")
    else:
        yield Finding("agent", "note", f"it is {state.status}", "try again in a moment")
    level, message, fix = _LEASES.get(state.lease, ("note", f"its lease is {state.lease}", None))
    why = f" ({state.lease_problem})" if state.lease_problem else ""
    yield Finding("lease", level, message + why, fix)
    if state.config != "ok":
        text = f"it keeps an earlier configuration: {state.config}"
        yield Finding("configuration", "problem", text, "mend the file; it is read again by itself")


def _ask(client: httpx.Client, base_url: str) -> RunningState | None:
    try:
        body = client.get(f"{base_url}/readyz").json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    if not isinstance(body, dict) or not {"status", "lease"} <= body.keys():
        return None  # another server has the port
    return RunningState(
        base_url,
        status=str(body["status"]),
        lease=str(body["lease"]),
        lease_problem=str(body.get("lease_problem", "")),
        config=str(body.get("config", "ok")),
    )
