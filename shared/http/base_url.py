"""Base URLs of upstreams: what form they may have, and what is appended to them."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

_MOST = 512


def normalise(base_url: str, what: str = "base URL") -> str:
    """Return `base_url` in the one form that is stored: no trailing slash.

    Args:
        base_url: as somebody wrote it.
        what: how messages call it.

    Raises:
        ValueError: it is no http or https URL with a host, or holds more than address and path.
    """
    text = base_url.strip()
    if len(text) > _MOST or "\\" in text or any(not c.isprintable() or c.isspace() for c in text):
        raise ValueError(f"the {what} holds characters that are not allowed, or is too long")
    parts, host = _split(text, what)
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"the {what} must start with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError(f"the {what} must not hold a user or password")
    if not host:
        raise ValueError(f"the {what} names no host")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError(f"the {what} must end with its path: no query, no fragment")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def api_base(base_url: str) -> str:
    """Return where the API's routes hang: a base URL without a path gets OpenAI's `/v1`."""
    bare = base_url.rstrip("/")
    return bare if urlsplit(bare).path else f"{bare}/v1"


def _split(text: str, what: str) -> tuple[SplitResult, str | None]:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError(f"the {what} is malformed: check its host and port") from None
    return parts, parts.hostname
