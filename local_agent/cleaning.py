"""Takes from a line of another program what callers may not see: host paths and addresses."""

from __future__ import annotations

import re

_LEVEL = re.compile(r"^[\d.:\s-]*\b[A-Z]\s+")
_URL = re.compile(r"\b\w+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_PATH = re.compile(r"~?(?:/[^\s/'\":;,()\[\]]+)+/?")


def cleaned(line: str) -> str:
    """Return a line without host paths and addresses."""
    without_paths = _PATH.sub(_last_part, _URL.sub("…", _LEVEL.sub("", line)))
    return " ".join("".join(c for c in without_paths if c.isprintable()).split())


def _last_part(match: re.Match[str]) -> str:
    return match.group().rstrip("/").rpartition("/")[2]
