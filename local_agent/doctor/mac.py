"""What can be wrong on a Mac only: Rosetta, quarantine, a GPU that is not there, missing tools."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from local_agent.doctor.finding import Finding
from local_agent.host.macos import Gpu, parse_gpus, parse_xattrs, quarantined_by
from local_agent.host.tools import MAC_TOOLS, Ask, ask, ask_mac

_WITHOUT_TOOL = {
    "caffeinate": "the Mac may sleep while a request runs",
    "ioreg": "the lid is unknown",
    "launchctl": "no service can be installed",
    "notifyutil": "how warm it is is unknown",
    "pmset": "whether it runs on its battery is unknown",
    "sysctl": "Rosetta is not noticed",
    "system_profiler": "the GPU is unknown",
    "vm_stat": "wired memory is unknown",
    "xattr": "quarantine is not noticed",
}
_ARM_PYTHON = (
    "take a Python for Apple Silicon (python.org, or Homebrew below /opt/homebrew), and install this "
    "program again with it (in a checkout: rm -rf .venv; PYTHON=/opt/homebrew/bin/python3.13 make setup)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MacFacts:
    """What the tools of a Mac told.

    `is_apple_silicon` is of the machine, `python_arch` of this program's interpreter. `attributes` has the
    extended attributes of each file that is run, by the path to show. `missing_tools` are names.
    """

    is_apple_silicon: bool
    python_arch: str
    gpus: tuple[Gpu, ...]
    attributes: Mapping[str, Mapping[str, str]]
    missing_tools: tuple[str, ...]


def mac_facts(python_arch: str, files: Collection[Path], ask: Ask = ask) -> MacFacts:
    """Ask this Mac; blocks for a second or two.

    Args:
        python_arch: the architecture that this interpreter reports.
        files: what is run: interpreters, and the service's file.
        ask: runs a program.
    """
    return MacFacts(
        # whether the machine can is asked, not whether the caller is translated: sysctl is a program of its own
        is_apple_silicon=ask_mac("sysctl", "-n", "hw.optional.arm64", ask=ask).strip() == "1",
        python_arch=python_arch,
        gpus=parse_gpus(ask_mac("system_profiler", "SPDisplaysDataType", ask=ask)),
        attributes={
            shown(path): parse_xattrs(ask_mac("xattr", "-l", str(path), ask=ask)) for path in files
        },
        missing_tools=tuple(
            name for name, path in sorted(MAC_TOOLS.items()) if not Path(path).exists()
        ),
    )


def examine_mac(facts: MacFacts) -> Iterator[Finding]:
    """Yield what is to be said of a Mac, beside what is said of every host."""
    yield _python(facts)
    yield _gpu(facts)
    yield from _quarantine(facts)
    for name in facts.missing_tools:
        text = f"{MAC_TOOLS[name]} is not there: {_WITHOUT_TOOL[name]}"
        yield Finding("tools", "note", text, "it is part of macOS: repair the installation")


def _python(facts: MacFacts) -> Finding:
    if facts.is_apple_silicon and facts.python_arch != "arm64":
        text = (
            f"this Python is made for {facts.python_arch} and runs under Rosetta: no engine gets the GPU, "
            "and everything is slower"
        )
        return Finding("python", "problem", text, _ARM_PYTHON)
    return Finding("python", "ok", f"native ({facts.python_arch})")


def _gpu(facts: MacFacts) -> Finding:
    usable = [gpu for gpu in facts.gpus if gpu.metal is not None]
    if usable:
        told = ", ".join(f"{gpu.name} (Metal: {gpu.metal})" for gpu in usable)
        return Finding("gpu", "ok", told)
    named = ", ".join(gpu.name for gpu in facts.gpus)
    what = f"{named} has no Metal" if named else "macOS lists no GPU (a virtual machine?)"
    fix = "run small models, or the agent on the Mac itself and not inside a virtual machine"
    return Finding("gpu", "note", f"{what}: engines compute on the CPU", fix)


def _quarantine(facts: MacFacts) -> Iterator[Finding]:
    for name, attributes in facts.attributes.items():
        program = quarantined_by(attributes)
        if program is None:
            continue
        by = f" by {program}" if program else ""
        text = f"{name} was put into quarantine{by}: macOS may refuse to run it, or to load it"
        fix = f"if you trust where it is from: xattr -d com.apple.quarantine {name}"
        yield Finding("quarantine", "problem", text, fix)


def shown(path: Path) -> str:
    """Return a path as its owner would type it."""
    try:
        return f"~/{shlex.quote(str(path.relative_to(Path.home())))}"
    except (ValueError, RuntimeError):
        return shlex.quote(str(path))
