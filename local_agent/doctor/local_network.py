"""The Local Network privacy of macOS 15 and later, which blocks a program silently.

A background program gets "No route to host" for machines of the local network until its owner allows it, and
no question is asked where nobody sees it. What was started from Terminal has Terminal's leave, so the same
address answers there (https://github.com/nicobailon/pi-mcp-adapter/issues/543,
https://github.com/cdzombak/runner/issues/4).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from local_agent.control.trust import NO_ROUTE
from local_agent.doctor.agent import RunningState
from local_agent.doctor.finding import Finding

_FIX = (
    "System Settings, Privacy & Security, Local Network: switch it on for Python or the agent, then restart "
    "the agent. If it is not listed: start `iir-agent serve` once from Terminal, or reach the router by a name "
    "that is not of the local network (a VPN, https)"
)


def is_local_network(url: str) -> bool:
    """Tell whether a URL leads to a machine of the local network: what macOS asks leave for.

    A name that is no address counts if it ends as those of a local network do; loopback never does.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.endswith((".local", ".lan", ".home.arpa"))
    return (address.is_private or address.is_link_local) and not address.is_loopback


def examine_local_network(
    platform: str,
    url: str,
    state: RunningState | None,
    *,
    is_reached: bool,
    had_no_route: bool,
) -> Iterator[Finding]:
    """Yield whether macOS seems to keep this program, or the agent, from the local network.

    Args:
        platform: of this host.
        url: where the router is looked for.
        state: what the running agent says of itself.
        is_reached: whether this process gets to the router.
        had_no_route: whether it was told that there is no route.
    """
    if platform != "darwin" or not is_local_network(url):
        return
    is_blocked = state is not None and state.lease_problem == NO_ROUTE
    if is_reached and is_blocked:
        text = (
            f"the agent is told that there is no route to {url}, and this command gets there: macOS blocks "
            "the agent from the local network"
        )
        yield Finding("local network", "problem", text, _FIX)
    elif had_no_route:
        text = (
            f"there is no route to {url}: macOS may block this program from the local network, or the router's "
            "machine is off"
        )
        yield Finding("local network", "problem", text, _FIX)
