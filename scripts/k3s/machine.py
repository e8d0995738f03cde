"""What this machine is: its system, its GPUs, the programs on its PATH."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_ANSWER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePaths:
    """Where k3s's installer puts things."""

    units: tuple[Path, ...] = (Path("/etc/systemd/system/k3s.service"), Path("/etc/init.d/k3s"))
    """The service, as systemd or OpenRC reads it."""
    kubeconfig: Path = Path("/etc/rancher/k3s/k3s.yaml")
    uninstallers: tuple[Path, ...] = (
        Path("/usr/local/bin/k3s-uninstall.sh"),
        Path("/opt/bin/k3s-uninstall.sh"),
    )
    marker: Path = Path("/var/lib/rancher/k3s")
    """Is there as long as a k3s has data, whoever installed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts by which driver and profile are chosen."""

    system: str
    gpus: tuple[str, ...]
    docker_answers: bool
    free_disk_gb: float
    search_path: str
    gpu_memory_gib: float = 0.0
    """Of the smallest GPU; 0: not known."""
    native: NativePaths = field(default_factory=NativePaths)

    def has(self, program: str) -> bool:
        """Tell whether a program is on the PATH."""
        return shutil.which(program, path=self.search_path) is not None


def look(environment: Mapping[str, str], folder: Path) -> Machine:
    """Ask the machine."""
    return Machine(
        system=platform.system(),
        gpus=tuple(_lines(environment, "nvidia-smi", "-L")),
        docker_answers=bool(
            _lines(environment, "docker", "info", "--format", "{{.ServerVersion}}")
        ),
        free_disk_gb=shutil.disk_usage(folder).free / 1e9,
        search_path=environment.get("PATH", ""),
        gpu_memory_gib=_gpu_memory_gib(environment),
    )


def _gpu_memory_gib(environment: Mapping[str, str]) -> float:
    ask = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    sizes = [float(line) for line in _lines(environment, *ask) if line.strip().isdigit()]
    return int(min(sizes, default=0.0) / 102.4) / 10  # from MiB, rounded down


def _lines(environment: Mapping[str, str], *command: str) -> list[str]:
    """Return what a program prints; nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
