"""Whose certificate the agent takes for its router's: TLS is always checked."""

from __future__ import annotations

import errno
import ssl
from pathlib import Path

import httpx

NO_ROUTE = "no_route"
"""The system knows no way there; on a Mac it may not want to (`doctor/local_network.py`)."""


class CaFileUnusable(Exception):
    """The file of `ROUTER_CA_FILE` can't be used; the message says why."""


def router_trust(ca_file: Path | None) -> ssl.SSLContext:
    """Return what checks the router's certificate.

    Args:
        ca_file: the only authorities that are trusted, as PEM. None: the public ones and those that
            this machine's system trusts.

    Raises:
        CaFileUnusable: the file is not there or holds no certificate.
    """
    if ca_file is None:
        return public_trust()
    try:
        return ssl.create_default_context(cafile=str(ca_file.expanduser()))
    except ssl.SSLError:
        raise CaFileUnusable("ROUTER_CA_FILE holds no certificate in PEM form") from None
    except OSError as error:
        raise CaFileUnusable(f"ROUTER_CA_FILE can't be read: {error.strerror}") from None


def public_trust() -> ssl.SSLContext:
    """Return what trusts the public authorities and those that this machine's system trusts."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def failure_code(error: httpx.HTTPError) -> str:
    """Return what kept a message from its answer, as a code that names no address."""
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    if has_no_route(error):
        return NO_ROUTE
    if isinstance(error, httpx.ConnectError):
        is_tls = "certificate" in str(error).lower()
        return "certificate_not_trusted" if is_tls else "no_connection"
    return "connection_broke"


def has_no_route(error: BaseException) -> bool:
    """Tell whether the system found no way to a host at all: what httpx raises tells it in a cause."""
    if isinstance(error, OSError) and error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return True
    # a name with several addresses fails with a group of errors
    inner: tuple[BaseException | None, ...] = getattr(error, "exceptions", ())
    causes = (error.__cause__ or error.__context__, *inner)
    return any(has_no_route(cause) for cause in causes if cause is not None)
