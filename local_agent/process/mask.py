"""Hides secrets in what engines print, before anybody but the log file's owner sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_HIDDEN = b"***"
# What is shorter would be found in ordinary words.
_LEAST = 6
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


class Mask:
    """Replaces known secrets, wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take the secrets; those of fewer than six characters are left alone."""
        found = sorted({one.encode() for one in secrets if len(one) >= _LEAST}, key=len)
        # a longer one first: it may begin with a shorter one
        self._pattern = re.compile(b"|".join(map(re.escape, reversed(found)))) if found else None
        self.longest = len(found[-1]) if found else 0

    def hide(self, data: bytes) -> bytes:
        """Return the bytes with `***` in place of each secret."""
        return data if self._pattern is None else self._pattern.sub(_HIDDEN, data)


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Return the values of the variables whose names speak of a secret: `HF_TOKEN`, `…_API_KEY`."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]
