"""The machine: what it is, and how work is kept to its cores."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Pinning:
    """What goes before a command so that it keeps to its core; nothing where that can't be had."""

    load: tuple[str, ...]
    gateway: tuple[str, ...]
    text: str


def find_pinning() -> Pinning:
    """Give the gateway one core, load and upstreams another: by `taskset`, which Linux has."""
    taskset = shutil.which("taskset")
    if taskset is None or not hasattr(os, "sched_getaffinity"):
        return Pinning((), (), "not pinned to cores: this system has no taskset")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Pinning((), (), "not pinned to cores: there is only one")
    load, gateway = cores[:2]
    return Pinning(
        (taskset, "-c", str(load)),
        (taskset, "-c", str(gateway)),
        f"gateway on core {gateway}, load and upstreams on core {load}",
    )


def describe_machine() -> str:
    """Return processor, cores, system and Python in one line; no name of the machine."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def describe_commit() -> str:
    """Return the checkout's commit, and whether files differ from it."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    if not commit:
        return "unknown"
    is_changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with local changes" if is_changed else commit


def today() -> str:
    """Return the date in UTC."""
    return dt.datetime.now(dt.timezone.utc).date().isoformat()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return (
        _output("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )


def _output(*command: str) -> str:
    """Return what a program prints, nothing if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
