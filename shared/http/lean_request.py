"""What the lean transport sends before a body: the address of a URL, and a request's head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from urllib.parse import quote, urlsplit

from shared.http.errors import UpstreamFailed

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
# They say how the message is framed or where it goes, which is for this client to say.
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PORTS = {"http": 80, "https": 443}
_NAME = itemgetter(0)
_LINE = "%s: %s\r\n".__mod__
# Remembered URLs and header names; both come from configuration, so there are few.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """One method on one URL: where it is sent, and the part of its head that is always the same.

    `origin` names scheme, host and port, and with them the pool of connections.
    """

    origin: str
    host: str
    port: int
    is_tls: bool
    is_head: bool
    start: str


class Requests:
    """Renders heads; remembers the parts that come again with each request."""

    def __init__(self) -> None:
        self._targets: dict[tuple[str, str], Target] = {}
        self._names: set[str] = set()

    def target(self, method: str, url: str) -> Target:
        """Return where a request goes.

        Raises:
            UpstreamFailed: the URL or the method is none.
        """
        target = self._targets.get((method, url))
        if target is None:
            target = _target(method, url)
            if len(self._targets) >= _REMEMBERED:
                self._targets.clear()
            self._targets[method, url] = target
        return target

    def head(self, target: Target, headers: Sequence[tuple[str, str]], length: int | None) -> bytes:
        """Return the bytes before the body; `length` is the body's, None for no body.

        Raises:
            UpstreamFailed: a header can't be sent. Nothing of it is repeated: it may hold a key.
        """
        if not self._names.issuperset(map(_NAME, headers)):
            for name, _ in headers:
                self._admit(name)
        text = target.start + "".join(map(_LINE, headers))
        if length is not None:
            text += f"content-length: {length}\r\n"
        # the first line and those of the target are not counted one by one: they are known good
        lines = len(headers) + (3 if length is None else 4)
        if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
            raise UpstreamFailed("A header for the upstream holds a line break or a null byte.")
        try:
            return f"{text}\r\n".encode("latin-1")
        except UnicodeEncodeError:
            raise UpstreamFailed("A header for the upstream is not Latin-1.") from None

    def _admit(self, name: str) -> None:
        if _TOKEN.fullmatch(name) is None or name.lower() in _OURS:
            raise UpstreamFailed("A header for the upstream has a name that can't be sent.")
        if len(self._names) >= _REMEMBERED:
            self._names.clear()
        self._names.add(name)


def _target(method: str, url: str) -> Target:
    if _TOKEN.fullmatch(method) is None or method == "CONNECT":
        raise UpstreamFailed("The method of a request to the upstream is none.")
    try:
        parts = urlsplit(url)
        default = _PORTS.get(parts.scheme)
        port = parts.port if parts.port is not None else default
        host = _ascii_host(parts.hostname or "")
    except (ValueError, UnicodeError):
        raise _no_url() from None
    if default is None or not port or not host or "@" in parts.netloc or _NOT_IN_URLS.search(url):
        raise _no_url()
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == default else f"{shown}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
    query = f"?{quote(parts.query, safe=_QUERY)}" if parts.query else ""
    return Target(
        origin=f"{parts.scheme}://{shown}:{port}",
        host=host,
        port=port,
        is_tls=parts.scheme == "https",
        is_head=method == "HEAD",
        start=f"{method} {path}{query} HTTP/1.1\r\nhost: {authority}\r\naccept-encoding: identity\r\n",
    )


_QUERY = "/%:@!$&'()*+,;=-._~?[]"


def _ascii_host(host: str) -> str:
    if host.isascii():
        return host
    return host.encode("idna").decode("ascii")


def _no_url() -> UpstreamFailed:
    return UpstreamFailed("The address of the upstream is not a valid http or https URL.")
