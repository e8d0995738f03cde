"""What a service manager does for the agent, and how it is asked: `launchctl` or `systemctl --user`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from local_agent.host.tools import MAC_TOOLS
from local_agent.service.definition import LABEL, UNIT, Definition, plist, unit

_TIMEOUT_S = 60.0
"""How long a service manager may take, beyond what the agent may take to end."""
_GONE_POLL_S = 0.25
_LAUNCHCTL = MAC_TOOLS["launchctl"]
_NO_SUCH_SERVICE = 113
_IN_PROGRESS = 36
_LISTED = re.compile(r'^\s*"(PID|LastExitStatus)" = (-?\d+);', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command."""

    code: int
    out: str = ""
    err: str = ""


Run = Callable[[Sequence[str]], Outcome]


class ServiceProblem(Exception):
    """The service manager did not do what it was asked; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """How the service is. `exit_code` is that of its last end; None: none yet, or nobody tells."""

    is_known: bool
    pid: int | None = None
    exit_code: int | None = None


class ServiceManager(Protocol):
    """Carries the agent; every call blocks and may raise `ServiceProblem`."""

    def content(self, service: Definition) -> bytes:
        """Return what its file holds."""
        ...

    def start(self, path: Path) -> None:
        """Take the file, and start the agent anew from it."""
        ...

    def stop(self) -> None:
        """End the agent and forget it; nothing is said if it was not known."""
        ...

    def forget(self) -> None:
        """Take note that the file is gone. Never raises: nothing is left that could start it."""
        ...

    def state(self) -> ServiceState:
        """Return how it is."""
        ...


def run_command(argv: Sequence[str], stop_s: float) -> Outcome:
    """Run a command of the service manager; it blocks, also while the agent ends, for `stop_s` at most."""
    try:
        done = subprocess.run(  # noqa: S603 - constants, and paths of ours
            argv,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S + stop_s,
        )
    except FileNotFoundError:
        return Outcome(127, err=f"{argv[0]} is not there")
    except (OSError, subprocess.SubprocessError) as error:
        return Outcome(126, err=f"{argv[0]} did not answer ({type(error).__name__})")
    return Outcome(
        done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


class Launchd:
    """`ServiceManager` by launchd, in the session of the user who is logged in at the screen."""

    def __init__(
        self, run: Run, sleep: Callable[[float], None], *, stop_s: float, uid: int | None = None
    ) -> None:
        """Take how commands are run, how to wait, and how long the agent may take to end."""
        self._run, self._sleep, self._stop_s = run, sleep, stop_s
        self._domain = f"gui/{os.getuid() if uid is None else uid}"

    def content(self, service: Definition) -> bytes:
        """See `ServiceManager.content`."""
        return plist(service)

    def start(self, path: Path) -> None:
        """See `ServiceManager.start`; an older one has to be gone before, or launchd refuses."""
        self.stop()
        self._run((_LAUNCHCTL, "enable", f"{self._domain}/{LABEL}"))
        done = self._run((_LAUNCHCTL, "bootstrap", self._domain, str(path)))
        if done.code:
            hint = "log in at the Mac's own screen, since a LaunchAgent needs that session"
            raise ServiceProblem(f"launchd did not take it ({_told(done)}); {hint}")

    def stop(self) -> None:
        """See `ServiceManager.stop`."""
        done = self._run((_LAUNCHCTL, "bootout", f"{self._domain}/{LABEL}"))
        if done.code not in {0, 3, _IN_PROGRESS, _NO_SUCH_SERVICE}:
            raise ServiceProblem(f"launchd did not stop it ({_told(done)})")
        for _ in range(round(self._stop_s / _GONE_POLL_S)):
            if not self.state().is_known:
                return
            self._sleep(_GONE_POLL_S)
        raise ServiceProblem("the agent does not end; see its log, and try again")

    def forget(self) -> None:
        """See `ServiceManager.forget`: launchd reads the file once, in `start`."""

    def state(self) -> ServiceState:
        """See `ServiceManager.state`.

        `launchctl list LABEL` prints a dictionary with few fields; `launchctl print` says of itself that
        its output may change at any time.
        """
        done = self._run((_LAUNCHCTL, "list", LABEL))
        return parse_listed(done.out) if done.code == 0 else ServiceState(is_known=False)


def parse_listed(text: str) -> ServiceState:
    """Return what `launchctl list LABEL` printed; its exit status is that of wait(2)."""
    found = {name: int(value) for name, value in _LISTED.findall(text)}
    status = found.get("LastExitStatus")
    return ServiceState(
        is_known=True,
        pid=found.get("PID"),
        exit_code=None if status is None else os.waitstatus_to_exitcode(status & 0xFFFF),
    )


class Systemd:
    """`ServiceManager` by the user's own systemd."""

    def __init__(self, run: Run) -> None:
        """Take how commands are run."""
        self._run = run

    def content(self, service: Definition) -> bytes:
        """See `ServiceManager.content`."""
        return unit(service).encode()

    def start(self, path: Path) -> None:
        """See `ServiceManager.start`."""
        for words in (("daemon-reload",), ("enable", UNIT), ("restart", UNIT)):
            self._do(*words)

    def stop(self) -> None:
        """See `ServiceManager.stop`."""
        if self.state().is_known:
            self._do("disable", "--now", UNIT)

    def forget(self) -> None:
        """See `ServiceManager.forget`: systemd keeps what it has read, its link to it, and that it failed."""
        for words in (("disable", UNIT), ("daemon-reload",), ("reset-failed", UNIT)):
            self._run(("systemctl", "--user", *words))

    def state(self) -> ServiceState:
        """See `ServiceManager.state`."""
        names = "LoadState,ActiveState,MainPID,ExecMainStatus,ExecMainExitTimestampMonotonic"
        return parse_shown(self._do("show", UNIT, f"--property={names}").out)

    def _do(self, *words: str) -> Outcome:
        done = self._run(("systemctl", "--user", *words))
        if done.code:
            hint = "is this a session with a user's systemd? In a container or by `su` it is not"
            raise ServiceProblem(f"systemctl --user {words[0]} failed ({_told(done)}); {hint}")
        return done


def parse_shown(text: str) -> ServiceState:
    """Return what `systemctl show --property=…` printed."""
    values: Mapping[str, str] = dict(
        line.split("=", 1) for line in text.splitlines() if "=" in line
    )
    if values.get("LoadState") != "loaded":
        return ServiceState(is_known=False)
    has_ended = values.get("ExecMainExitTimestampMonotonic", "0") != "0"
    pid, status = values.get("MainPID", "0"), values.get("ExecMainStatus", "")
    return ServiceState(
        is_known=True,
        pid=int(pid) if pid.isdecimal() and pid != "0" else None,
        exit_code=int(status) if has_ended and status.isdecimal() else None,
    )


def _told(done: Outcome) -> str:
    """Return the last line that a command said, and its exit code."""
    lines = (done.err or done.out).strip().splitlines()
    return f"{lines[-1].strip() if lines else 'it said nothing'}, exit {done.code}"
