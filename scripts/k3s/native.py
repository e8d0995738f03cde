"""k3s itself, as a service of this Linux machine: the way to a GPU."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from scripts.devstack.text import say
from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError, NotOurs
from scripts.k3s.kubeconfig import write_kubeconfig
from scripts.k3s.machine import Machine
from scripts.k3s.pins import INSTALLER, K3S_VERSION, OWNER_LABEL, Installer
from scripts.k3s.release import uninstall
from scripts.k3s.tools import Tools

Fetch = Callable[[str], bytes]
_GPU_RUNTIME = "nvidia-container-runtime"
_TOOLKIT = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
_OPTIONS = ("server", "--disable=traefik", "--disable=servicelb", "--write-kubeconfig-mode=600")


class Native:
    """The service `k3s` of this machine, ours if its unit carries the label of this installation."""

    def __init__(
        self,
        tools: Tools,
        machine: Machine,
        fetch: Fetch,
        installer: Installer = INSTALLER,
        *,
        install: str,
    ) -> None:
        self._installs = False
        self._mark = f"{OWNER_LABEL}={install}"
        self._tools = tools
        self._machine = machine
        self._paths = machine.native
        self._fetch = fetch
        self._installer = installer

    def ensure(self, choice: Choice, remember: Callable[[], None]) -> None:
        """Use the k3s that is there, or install one."""
        if self._machine.system != "Linux":
            raise ClusterError(
                f"k3s runs on Linux only. Here: {again('--driver k3d')} (needs Docker)"
            )
        if not self.is_ours and self._is_there():
            self._adopt(choice)
        elif not self.is_ours:
            script = self._agreed_script(choice)
            remember()
            self._install(script)
        remember()
        write_kubeconfig(self._tools, self._read_kubeconfig())

    @property
    def is_ours(self) -> bool:
        """Tell whether the installed service is ours; a note of our own could outlive it."""
        return self._installs or any(_holds(unit, self._mark) for unit in self._paths.units)

    def _is_there(self) -> bool:
        traces = (*self._paths.units, self._paths.marker)
        return any(path.exists() for path in traces) or self._machine.has("k3s")

    def _adopt(self, choice: Choice) -> None:
        if choice.has_namespace:
            return  # it was agreed to
        self._tools.must(
            f"A k3s is installed that this `make k3s-up` did not install. Use it, for the namespace "
            f"{choice.namespace} only? It is neither changed nor removed.",
            otherwise="Say it beforehand: YES=1 make k3s-up; "
            f"or keep apart from it: {again('--driver k3d')}",
        )

    def _agreed_script(self, choice: Choice) -> Path:
        """Return the installer, checked and agreed to."""
        if choice.needs_gpu and not self._machine.has(_GPU_RUNTIME):
            raise ClusterError(
                f"There is a GPU ({self._machine.gpus[0]}), but no {_GPU_RUNTIME}: k3s looks for it when "
                f"it starts. Install NVIDIA's container toolkit first: {_TOOLKIT}\n"
                f"Or do without the GPU: {again('--profile cpu')}"
            )
        script = self._verified_script()
        self._tools.must(
            f"Install k3s {K3S_VERSION} as a service of this machine? It runs {script} (checked: sha256 "
            f"{self._installer.sha256[:12]}…) with sudo, which writes /usr/local/bin/k3s, a unit of "
            "systemd or OpenRC and /var/lib/rancher/k3s, and changes iptables. k3s's API (6443), kubelet "
            "(10250) and pod network (8472/udp) listen on all addresses, guarded by certificates; "
            "models do not. PURGE=1 make k3s-down removes it.",
            otherwise=f"Read {script}, then say it beforehand: YES=1 make k3s-up; "
            f"or without root, in Docker: {again('--driver k3d')}",
        )
        return script

    def _install(self, script: Path) -> None:
        say(f"installing k3s {K3S_VERSION}")
        options = " ".join([*_OPTIONS, f"--node-label={self._mark}"])
        extra = {"INSTALL_K3S_VERSION": K3S_VERSION, "INSTALL_K3S_EXEC": options}
        hint = "sudo journalctl -u k3s -n 50 shows what the service says, if it came that far."
        self._tools.attached("the installation", ["sh", str(script)], extra, hint=hint)
        self._installs = True

    def _verified_script(self) -> Path:
        """Return the installer on disk, with the digest that was pinned."""
        path = self._tools.kubeconfig.parent / f"install-k3s-{K3S_VERSION}.sh"
        if path.is_file() and _digest(path.read_bytes()) == self._installer.sha256:
            return path
        if self._tools.is_dry:
            say(f"would download: {self._installer.url} (sha256 {self._installer.sha256})")
            return path
        script = self._fetch(self._installer.url)
        if _digest(script) != self._installer.sha256:
            raise ClusterError(
                f"{self._installer.url} is not what was pinned: sha256 {_digest(script)}, expected "
                f"{self._installer.sha256}. It was not run. Something between here and GitHub answers in "
                f"its place, or the tag was moved: report it. Without it: {again('--driver k3d')}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script)
        return path

    def _read_kubeconfig(self) -> str:
        path = self._paths.kubeconfig
        try:
            return path.read_text()
        except PermissionError:
            pass
        except FileNotFoundError:
            if self._tools.is_dry:
                return ""
            hint = "Is it running? sudo systemctl status k3s; sudo systemctl start k3s"
            if not self.is_ours:
                hint = f"Is it a node of a cluster elsewhere? Then: {again('--driver existing --kubeconfig FILE')}"
            raise ClusterError(f"There is no {path}, which a k3s server writes. {hint}") from None
        if not self.is_ours:
            raise ClusterError(
                f"{path} is readable by root only. Hand a copy over yourself:\n"
                f"  sudo cat {path} > k3s.yaml && chmod 600 k3s.yaml\n"
                f"  {again('--driver existing --kubeconfig k3s.yaml')}"
            )
        if self._tools.is_dry:
            say(f"would run: sudo cat {path}")
            return ""
        done = subprocess.run(
            ["sudo", "cat", str(path)],
            env=self._tools.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"{path} could not be read with sudo. Run make k3s-up again.")
        return done.stdout

    def values(self, choice: Choice) -> list[str]:
        """Return the runtime class by which k3s hands on GPUs, and what they hold."""
        if not choice.needs_gpu:
            return []
        size = self._machine.gpu_memory_gib
        known = [f"capacityCheck.gpuMemoryGiB={size:g}"] if size else []
        return ["modelServer.gpu.runtimeClassName=nvidia", *known]

    def gpus(self, choice: Choice) -> int:
        """Return the machine's GPUs: the cluster offers them once the device plugin runs."""
        return len(self._machine.gpus)

    def look(self, choice: Choice) -> str:
        """Return what shows the service's log."""
        return "What it says: sudo journalctl -u k3s -n 50"

    def rest(self, choice: Choice) -> str:
        """Uninstall the release; k3s itself goes on, it may serve others by now."""
        uninstall(self._tools, choice)
        return (
            "k3s itself goes on, with images and models: sudo systemctl stop k3s ends it for now."
        )

    def remove(self, choice: Choice) -> None:
        """Uninstall k3s if its service carries our label."""
        if not self.is_ours:
            return
        uninstaller = next((path for path in self._paths.uninstallers if path.is_file()), None)
        if uninstaller is None:
            places = " nor ".join(map(str, self._paths.uninstallers))
            raise NotOurs(
                f"k3s is removed by its own script, and neither {places} is there. "
                "Find k3s-uninstall.sh and run it, then this again."
            )
        self._tools.must(
            f"Remove k3s from this machine, with everything in its cluster ({uninstaller})?",
            otherwise="Say it beforehand: YES=1 PURGE=1 make k3s-down",
        )
        hint = "Run it again; it goes on where it stopped."
        self._tools.attached("the removal", [str(uninstaller)], {}, hint=hint)


def _holds(unit: Path, mark: str) -> bool:
    try:
        return mark in unit.read_text()
    except OSError:
        return False


def _digest(script: bytes) -> str:
    return hashlib.sha256(script).hexdigest()
