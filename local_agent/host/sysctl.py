"""Asks macOS's `sysctl` and `vm_stat`."""

from __future__ import annotations

import subprocess

_LIMIT_S = 3.0


def sysctl(*names: str) -> str:
    """Return what `sysctl NAME…` prints; empty if it can't be asked. Names it does not know are left out."""
    return tool("/usr/sbin/sysctl", *names)


def vm_stat() -> str:
    """Return what `vm_stat` prints; empty if it can't be asked."""
    return tool("/usr/bin/vm_stat")


def tool(*argv: str) -> str:
    """Return what a program prints; empty if there is none, or it does not answer in time."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed path and our own words
            argv, capture_output=True, text=True, timeout=_LIMIT_S, check=False, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
