"""Which address an agent may give as its own: never a way to make the router call elsewhere."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from router.errors import AgentAddressRefused
from shared.http.addresses import is_metadata, plain
from shared.http.origin import is_loopback


def check_agent_url(url: str, caller: str, allowed: frozenset[str]) -> str:
    """Return the URL, normalised to `http://ADDRESS:PORT`.

    Args:
        url: what the agent gave.
        caller: the address that it calls from.
        allowed: further addresses and names that the operator listed (`ROUTER_AGENT_HOSTS`).

    Raises:
        AgentAddressRefused: not a plain `http://IP:PORT`, an address that no agent may have, or
            neither the caller's own nor a listed one. Names are refused, since what they point to
            can change after the check, but for those that the operator listed and so vouches for.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("It is not a URL.") from None
    rest = parts.path.strip("/") or parts.query or parts.fragment
    bare = parts.scheme in {"http", "https"} and not rest
    is_v6 = ":" in (parts.hostname or "")
    odd = "@" in parts.netloc or "\\" in url or ("[" in parts.netloc) is not is_v6
    if not bare or odd or not port:
        raise _refused("Give http://ADDRESS:PORT and nothing else.")
    name = parts.hostname or ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if name in allowed:
            return f"{parts.scheme}://{name}:{port}"
        raise _refused(
            "Give an IP address; a name has to be listed in ROUTER_AGENT_HOSTS."
        ) from None
    address = plain(address)
    odd = address.is_link_local or address.is_multicast or address.is_unspecified
    if odd or is_metadata(address):
        raise _refused("Link-local, multicast, wildcard and metadata addresses are not taken.")
    own = is_loopback(caller) if address.is_loopback else str(address) == _plain(caller)
    if not own and str(address) not in allowed:
        raise _refused(
            "It is not the address that the agent calls from. If that is right, list it in "
            "ROUTER_AGENT_HOSTS."
        )
    host = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
    return f"{parts.scheme}://{host}:{port}"


def _plain(caller: str) -> str:
    try:
        address = ipaddress.ip_address(caller)
    except ValueError:
        return caller
    return str(plain(address))


def _refused(reason: str) -> AgentAddressRefused:
    return AgentAddressRefused(f"The agent's URL was refused. {reason}")
