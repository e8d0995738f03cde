"""Runs the operating system's own small programs, and takes what they print."""

from __future__ import annotations

import subprocess  # the programs are named here, with their paths
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

Ask = Callable[[Sequence[str]], str | None]
"""Runs a program; returns what it printed, None if it is not there, failed, or took too long."""

MAC_TOOLS: Mapping[str, str] = {
    "caffeinate": "/usr/bin/caffeinate",
    "ioreg": "/usr/sbin/ioreg",
    "launchctl": "/bin/launchctl",
    "notifyutil": "/usr/bin/notifyutil",
    "pmset": "/usr/bin/pmset",
    "sysctl": "/usr/sbin/sysctl",
    "system_profiler": "/usr/sbin/system_profiler",
    "vm_stat": "/usr/bin/vm_stat",
    "xattr": "/usr/bin/xattr",
}
"""The programs of macOS that are asked, by name: launchd gives no PATH that could be relied on."""

_TIMEOUT_S = 5.0
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


def ask(
    argv: Sequence[str],
    timeout_s: float = _TIMEOUT_S,
    *,
    env: Mapping[str, str] | None = None,
    may_fail: bool = False,
) -> str | None:
    """See `Ask`; it blocks. Of our environment the program gets `env` and nothing else, so no secret.

    `may_fail`: what it printed counts even if it says that it failed.
    """
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603 - the callers' own constants
            argv,
            capture_output=True,
            check=not may_fail,
            env={**_ENVIRONMENT, **(env or {})},
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
        return done.stdout.decode(errors="replace")
    return None


def ask_mac(tool: str, *args: str, ask: Ask = ask) -> str:
    """Return what a program of macOS prints; empty where it tells nothing."""
    return ask((MAC_TOOLS[tool], *args)) or ""


def sysctl(*names: str) -> str:
    """Return what `sysctl NAME…` prints; names that it does not know are left out, and it fails for them."""
    return ask((MAC_TOOLS["sysctl"], *names), may_fail=True) or ""
