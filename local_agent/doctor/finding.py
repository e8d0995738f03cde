"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `fix` is a command or the line to change, if there is a next step.

    A `note` is worth knowing and keeps nothing from working that somebody relies on.
    """

    check: str
    level: Level
    message: str
    fix: str | None = None


def split_reason(check: str, level: Level, reason: str) -> Finding:
    """Return a finding of a reason that reads `WHAT; FIX`, as engines and container engines give it."""
    message, _, fix = reason.partition("; ")
    return Finding(check, level, message, fix or None)
