"""A machine of its own for `make k3s-up`: a PATH of fakes, a checkout, a home, a user's own files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local_agent.process import free_port
from scripts.k3s.__main__ import main
from scripts.k3s.chart import FOLDER
from scripts.k3s.commands import Place
from scripts.k3s.machine import Machine, NativePaths
from scripts.k3s.pins import CONTAINER_LABEL, Installer
from tests.scripts.k3s import fakes

ROOT = Path(__file__).parents[3]
PROFILES = ("sim", "cpu", "gpu-small", "gpu-pd", "gateway-agentgateway", "gateway-istio")
URL = "https://example.invalid/install.sh"
INSTALL = "0badc0ffee15f00d"
"""The id that the stage's installation gets."""
GPU = "GPU 0: NVIDIA L4 (UUID: GPU-4e9d3d54-0000-0000-0000-000000000000)"


class Stage:
    """What a test sets, runs and looks at afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stage"
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.root = folder / "checkout"
        self.users = folder / "users-kubeconfig"
        for one in (self.folder, self.bin, self.home):
            one.mkdir()
        for path in ((ROOT / FOLDER / "values.yaml"), *(ROOT / FOLDER / "values").iterdir()):
            copy = self.root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (self.folder / "log").touch()
        (self.folder / "server.py").write_text(fakes.SERVER)
        (self.folder / "installer.env").touch()
        self.users.write_text("the user's own")
        self.port = free_port()
        self.router_s = 30.0
        self.installer = fakes.INSTALLER
        self.env = {
            "PATH": f"{self.bin}:{os.defpath}",
            "HOME": str(folder),
            "STAGE": str(self.folder),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "SERVED_PORT": str(self.port),
            "IIR_HOME": str(self.home),
            "ROUTER_PORT": str(free_port()),  # no router of this machine's user
            "KUBECONFIG": str(self.users),
        }
        self.machine = Machine(
            system="Linux",
            gpus=(),
            docker_answers=True,
            free_disk_gb=100.0,
            search_path=self.env["PATH"],
            native=NativePaths(
                units=(self.folder / "k3s.service", self.folder / "init.d-k3s"),
                kubeconfig=self.folder / "k3s.yaml",
                uninstallers=(self.folder / "nowhere.sh", self.folder / "k3s-uninstall.sh"),
                marker=self.folder / "var-lib-rancher-k3s",
            ),
        )
        for name, body in fakes.PROGRAMS.items():
            self.program(name, body)
        self.keep("labels.json", {CONTAINER_LABEL: INSTALL, "k3d.cluster": "iir"})
        self.keep("nodes.json", nodes())
        self.keep("nodes-gpu.json", nodes(gpus="1"))
        spec = {"clusterIP": "127.0.0.1", "ports": [{"name": "http", "port": self.port}]}
        self.keep("service.json", {"kind": "Service", "spec": spec})
        self.keep("view.json", view("https://k8s.example:6443"))

    def program(self, name: str, body: str) -> None:
        """Put a program on the PATH."""
        path = self.bin / name
        path.write_text(fakes.HEAD + body)
        path.chmod(0o755)

    def without(self, name: str) -> None:
        """Take a program off the PATH."""
        (self.bin / name).unlink()

    def says(
        self, name: str, pattern: str, output: Any = "", *, error: str = "", code: int = 0
    ) -> None:
        """Let a program answer so to what matches, in place of what it usually does."""
        rules = self.folder / "says" / name
        rules.mkdir(parents=True, exist_ok=True)
        rule = rules / f"{99 - len(list(rules.iterdir()))}"  # the latest first
        rule.mkdir()
        text = output if isinstance(output, str) else json.dumps(output)
        for part, value in {"output": text, "error": error, "code": str(code)}.items():
            (rule / part).write_text(value)
        (rule / "pattern").write_text(pattern)

    def keep(self, name: str, value: Any) -> None:
        """Write what a program answers with."""
        (self.folder / name).write_text(json.dumps(value))

    def with_gpu(self) -> None:
        """Give the machine a GPU and NVIDIA's container toolkit."""
        self.machine = replace(self.machine, gpus=(GPU,), gpu_memory_gib=22.4)
        self.program("nvidia-container-runtime", "")
        self.program("sudo", fakes.SUDO)

    def run(self, *arguments: str) -> int:
        """Run the command as `make` does; the environment is the stage's."""
        script = self.installer.encode()
        digest = hashlib.sha256(fakes.INSTALLER.encode()).hexdigest()
        place = Place(
            root=self.root,
            home=self.home,
            env_file=self.root / ".env",
            environment=self.env,
            machine=self.machine,
            fetch=lambda url: script if url == URL else b"",
            new_id=lambda: INSTALL,
            installer=Installer(url=URL, sha256=digest),
            answer_s=10.0,
            router_s=self.router_s,
        )
        return main(arguments, place)

    def up(self, *arguments: str) -> int:
        """Run `up` on the stage's port, agreeing to all."""
        return self.run("up", "--yes", "--port", str(self.port), *arguments)

    @property
    def asked(self) -> list[str]:
        """Return the command lines that were run."""
        return (self.folder / "log").read_text().splitlines()

    def ran(self, words: str) -> list[str]:
        """Return those that hold the words."""
        return [line for line in self.asked if words in line]

    def forget(self) -> None:
        """Empty the record of command lines."""
        (self.folder / "log").write_text("")

    def serve(self) -> None:
        """Let the endpoint answer without a k3d that starts it."""
        subprocess.run(["sh", "-c", f"{fakes.SERVE}serve"], env=self.env, check=True)

    def end(self) -> None:
        """End the server that the fakes started, if it runs."""
        path = self.folder / "server.pid"
        if path.is_file():
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what was printed, and what went to standard error."""
    captured = capsys.readouterr()
    return captured.out, captured.err


def nodes(gpus: str = "") -> dict[str, Any]:
    """Return `kubectl get nodes -o json`."""
    allocatable = {"cpu": "8", "memory": "32594524Ki", "pods": "110"}
    allocatable |= {"nvidia.com/gpu": gpus} if gpus else {}
    return {"items": [{"metadata": {"name": "box"}, "status": {"allocatable": allocatable}}]}


def view(server: str) -> dict[str, Any]:
    """Return `kubectl config view --raw --minify --flatten -o json`."""
    return {
        "kind": "Config",
        "current-context": "mine",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
    }
