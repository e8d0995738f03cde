"""Facts about the host that decide which engines can run."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import psutil

from local_agent.domain import HostFacts
from local_agent.host.macos import parse_sysctl
from local_agent.host.metal import ask_metal
from local_agent.host.tools import sysctl

ENGINE_MODULES = ("xllamacpp",)
"""Modules that engines ask for. They are looked for, never imported into the agent."""


def host_facts(modules: Iterable[str] = ENGINE_MODULES) -> HostFacts:
    """Return the facts; what no running machine changes is read once.

    Args:
        modules: top-level modules to look for.
    """
    memory_mb = psutil.virtual_memory().total // (1024 * 1024)
    system, arch = platform.system().lower(), platform.machine().lower()
    facts = HostFacts(
        platform=system,
        arch=arch,
        memory_mb=memory_mb,
        modules=frozenset(name for name in modules if importlib.util.find_spec(name)),
        machine=machine_name(_processor(), psutil.cpu_count() or 0, memory_mb),
    )
    if not facts.is_apple_silicon:
        return facts
    metal = _ask_metal()
    return replace(facts, accelerator_mb=metal.limit_mb, has_metal=metal.has_device)


# a process and some ten milliseconds each: a reload of the agent's file must not wait for them
_ask_metal = cache(ask_metal)


def machine_name(processor: str, cores: int, memory_mb: int) -> str:
    """Return what this machine is called where figures of several are kept.

    Other hardware is another machine; a disk that moves takes its old figures with it.
    """
    return f"{processor}, {cores} cores, {round(memory_mb / 1024)} GiB, {sys.platform}"


def processor_of(cpuinfo: str) -> str | None:
    """Return the processor's name in the text of Linux's `/proc/cpuinfo`; None if it has none (arm64)."""
    found = re.search(r"^model name\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
    return None if found is None else found[1].strip()


@cache
def _processor() -> str:
    name = None
    if sys.platform == "darwin":
        name = parse_sysctl(sysctl("machdep.cpu.brand_string")).get("machdep.cpu.brand_string")
    else:
        with suppress(OSError):
            name = processor_of(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    return name or platform.machine()
