"""What the service's file says. Pure: the same settings give the same bytes.

No secret is in it: the credential, tokens and keys stay where the agent reads them from.
"""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LABEL = "iir.agent"
UNIT = "iir-agent.service"
RESTART_S = 10
_STOP_MARGIN_S = 15
# launchd gives 256, which an agent with a hundred streams is over
_OPEN_FILES = 8192
_MAC_PATH = "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The agent as a service.

    `variables` is all that its environment gets beside what the system gives. `folder` is where it runs,
    which is where a checkout's `.env` lies. `stop_s` is how long it may take to end.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    folder: Path
    log: Path
    stop_s: int


def define(
    command: tuple[str, ...],
    *,
    variables: Mapping[str, str],
    folder: Path,
    log: Path,
    drain_s: float,
) -> Definition:
    """Return the service; it may take `drain_s` and a little more to end.

    Raises:
        ValueError: something of it has a line break, which no unit can hold.
    """
    texts = (*command, *variables.values(), str(folder), str(log))
    if any(character in text for text in texts for character in "\n\r\0"):
        raise ValueError("a path or a variable of the service has a line break")
    return Definition(
        command=command,
        variables=dict(variables),
        folder=folder,
        log=log,
        stop_s=round(drain_s) + _STOP_MARGIN_S,
    )


def plist(service: Definition) -> bytes:
    """Return the property list of a LaunchAgent: launchd.plist(5).

    It starts at login, and again when it fails; an exit with 0 is somebody's wish.
    """
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(service.command),
            "EnvironmentVariables": {"PATH": _MAC_PATH, **service.variables},
            "WorkingDirectory": str(service.folder),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            # without it macOS may slow down the processor and the disk for a background program
            "ProcessType": "Interactive",
            "ExitTimeOut": service.stop_s,
            "SoftResourceLimits": {"NumberOfFiles": _OPEN_FILES},
            "StandardOutPath": str(service.log),
            "StandardErrorPath": str(service.log),
        },
        sort_keys=False,
    )


def unit(service: Definition) -> str:
    """Return the unit: systemd.service(5), systemd.exec(5). Its log is the journal's.

    `KillMode=process`: workers outlive an agent that crashed, and the next one takes them over; an agent
    that is told to stop ends them itself.

    Raises:
        ValueError: the program lies where systemd starts none.
    """
    program, *arguments = service.command
    if any(character in program for character in "\"'\\"):
        raise ValueError("systemd starts no program whose path has a quote or a backslash")
    words = [f'"{_percent(program)}"', *(_quoted(word, is_argument=True) for word in arguments)]
    variables = "".join(
        f"Environment={_quoted(f'{name}={value}')}\n" for name, value in service.variables.items()
    )
    return (
        "[Unit]\n"
        "Description=Local agent of the Intelligent Inference Router\n"
        "\n"
        "[Service]\n"
        "Type=exec\n"
        f"ExecStart={' '.join(words)}\n"
        f"WorkingDirectory={_percent(str(service.folder))}\n"
        f"{variables}"
        "Restart=on-failure\n"
        f"RestartSec={RESTART_S}\n"
        "KillMode=process\n"
        f"TimeoutStopSec={service.stop_s}\n"
        "\n"
        "[Install]\n"
        "WantedBy=default.target\n"
    )


def plist_path(home: Path | None = None) -> Path:
    """Return where the LaunchAgent lies; `home` is the user's home folder."""
    return (home or Path.home()) / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def unit_path(env: Mapping[str, str], home: Path | None = None) -> Path:
    """Return where the unit lies."""
    config = env.get("XDG_CONFIG_HOME")
    folder = Path(config) if config else (home or Path.home()) / ".config"
    return folder / "systemd" / "user" / UNIT


def _quoted(text: str, *, is_argument: bool = False) -> str:
    """Return a word of a unit that means itself, whatever is in it."""
    escaped = _percent(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{escaped.replace("$", "$$") if is_argument else escaped}"'


def _percent(text: str) -> str:
    return text.replace("%", "%%")
