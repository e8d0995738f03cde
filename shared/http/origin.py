"""Which Host and Origin headers a local service answers to.

A service on loopback is reachable from every web page that the owner opens. A page can make the
browser send requests there (cross-site), or point its own name at 127.0.0.1 (DNS rebinding); the
first shows in `Origin` and `Sec-Fetch-Site`, the second in `Host`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import Scope

from shared.http.asgi import check_host_header, header
from shared.http.errors import CrossSiteRefused, HostNotAllowed

_ODD = re.compile(r"[^A-Za-z0-9.:_\[\]-]")  # user info, paths and escapes have no place there
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Tell whether an address or name means this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def is_local(scope: Scope) -> bool:
    """Tell whether both ends of a request's connection are on this machine's loopback."""
    client, server = scope.get("client"), scope.get("server")
    return (
        client is not None
        and server is not None
        and is_loopback(client[0])
        and is_loopback(server[0])
    )


@lru_cache(maxsize=256)
def host_of(host_header: str) -> str:
    """Return the host of a Host header in lower case, without port and brackets; "" if odd."""
    if _ODD.search(host_header):
        return ""
    try:
        return (urlsplit(f"//{host_header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True)
class OriginRules:
    """What a service answers to.

    `bound_host` is the address it listens on; `allowed_hosts` are further names (`*`: all);
    `next_step` is a sentence that says which setting extends them. `allowed_origins` are the
    foreign web pages that may call.
    """

    bound_host: str
    next_step: str
    allowed_hosts: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()

    def check_host(self, scope: Scope) -> None:
        """Refuse a request for a host that is not ours.

        Raises:
            BadRequest: there is not exactly one Host header.
            HostNotAllowed: it names another host.
        """
        host = host_of(check_host_header(scope))
        if host in _LOOPBACK_NAMES or host in self.allowed_hosts or "*" in self.allowed_hosts:
            return
        # a name can be pointed here by anyone (DNS rebinding); an address can't
        if host == self.bound_host.lower() or (_is_wildcard(self.bound_host) and _is_address(host)):
            return
        raise HostNotAllowed(f"This host name is not served here. {self.next_step}")

    def check_origin(self, scope: Scope) -> None:
        """Refuse what a web page of another origin sent.

        Raises:
            CrossSiteRefused: `Origin` is foreign, or the browser says that the request is.
        """
        origin = header(scope, b"origin")
        if origin is not None:
            text = origin.decode("latin-1")
            if text in self.allowed_origins:
                return
            own = (header(scope, b"host") or b"").decode("latin-1").lower()
            if text.lower() not in {f"http://{own}", f"https://{own}"}:
                raise CrossSiteRefused(
                    "Web pages of other origins may not use this service without an API key."
                )
        if header(scope, b"sec-fetch-site") not in {None, b"same-origin", b"none"}:
            raise CrossSiteRefused(
                "Web pages of other sites may not use this service without an API key."
            )


def _is_wildcard(host: str) -> bool:
    return host in {"0.0.0.0", "::", ""}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def split_list(text: str) -> frozenset[str]:
    """Return the parts of a comma-separated setting, trimmed and in lower case."""
    return frozenset(part.strip().lower() for part in text.split(",") if part.strip())
