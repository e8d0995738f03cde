"""The wheel, built and installed as its users do: by pip, pipx or uv, away from the checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from local_agent.process import free_port
from tests.integration.stack import ROOT, machine_environment, missing, output_of

_SLOW_S = 600


def build_wheel(folder: Path) -> Path:
    """Build both archives, the wheel from the sdist, as `make dist` does; return the wheel."""
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], {})
    (wheel,) = folder.glob("*.whl")
    return wheel


NAME = "intelligent-inference-router"
INSTALLERS = ("pip", "pipx", "uv")


@dataclass(frozen=True, slots=True)
class Installer:
    """A way to install the wheel below a folder: `pip` into an environment, or a tool."""

    name: str
    folder: Path

    @property
    def programs(self) -> Path:
        """Return the folder that has `iir` and `iir-agent` then."""
        return self.folder / ("venv/bin" if self.name == "pip" else "bin")

    def install(self, wheel: Path, *, again: bool = False) -> None:
        """Install the wheel with its extra; `again`: over what is there, as for an upgrade."""
        wanted = f"{wheel}[llama]"
        if self.name == "pip":
            if not again:
                _run([sys.executable, "-m", "venv", str(self.folder / "venv")], {})
            over = ["--force-reinstall", "--no-deps"] if again else []
            _run([str(self.programs / "pip"), "install", "--quiet", *over, wanted], {})
            return
        if not again:
            self._bring_tool()
        force = ["--force"] if again else []
        self._tool("install", *force, "--python", sys.executable, wanted)

    def uninstall(self) -> None:
        """Remove the programs."""
        if self.name == "pip":
            _run([str(self.programs / "pip"), "uninstall", "--quiet", "--yes", NAME], {})
        else:
            self._tool("uninstall", NAME)

    def _tool(self, *arguments: str) -> None:
        command = [str(self._environment / "bin" / self.name)]
        command += ["tool", *arguments] if self.name == "uv" else arguments
        home = str(self.folder / "home")
        bins = str(self.programs)
        env = {
            "pipx": {"PIPX_HOME": home, "PIPX_BIN_DIR": bins},
            "uv": {"UV_TOOL_DIR": home, "UV_TOOL_BIN_DIR": bins},
        }
        _run(command, env[self.name])

    def _bring_tool(self) -> None:
        """Bring the tool, from the package index, in an environment of its own."""
        _run([sys.executable, "-m", "venv", str(self._environment)], {})
        try:
            pip = str(self._environment / "bin" / "pip")
            _run([pip, "install", "--quiet", "--only-binary", ":all:", self.name], {})
        except AssertionError as error:
            missing(f"{self.name} from the package index: {str(error)[-300:]}")

    @property
    def _environment(self) -> Path:
        return self.folder / "tool"


def _run(words: Sequence[str], env: Mapping[str, str]) -> None:
    output_of(words, limit_s=_SLOW_S, env=env)


def _await_end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(20)
    finally:
        child.kill()
        child.wait()


@dataclass(slots=True, kw_only=True)
class Installed:
    """Both programs on a machine without the checkout, with a user's home of its own."""

    programs: Path
    home: Path
    router_port: int = field(default_factory=free_port)
    agent_port: int = field(default_factory=free_port)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def router_url(self) -> str:
        """Return the router's address."""
        return f"http://127.0.0.1:{self.router_port}"

    def run(self, program: str, *arguments: str, cwd: Path, says: str = "") -> str:
        """Run a command to its end and return what it prints; `says` is its input."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=cwd,
            env=self._environment(),
            input=says,
            capture_output=True,
            text=True,
            timeout=_SLOW_S,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def serve(self, program: str, *arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
        """Start one of the services; its log is below the home."""
        with self.log(program).open("ab") as log:
            child = subprocess.Popen(
                [str(self.programs / program), "serve", *arguments],
                cwd=cwd,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(child)
        return child

    def log(self, program: str) -> Path:
        """Return the file that a service's output goes to."""
        return self.home.parent / f"{program}.log"

    def end(self) -> None:
        """End whatever runs still.

        Raises:
            subprocess.TimeoutExpired: one did not end by itself; it was killed.
        """
        with ExitStack() as stack:
            for child in self._started:
                child.terminate()
                stack.callback(_await_end, child)

    def _environment(self) -> dict[str, str]:
        """Return a user's environment: of this machine, without what belongs to the checkout."""
        env = machine_environment(
            HOME=str(self.home),
            ROUTER_PORT=str(self.router_port),
            AGENT_PORT=str(self.agent_port),
            ROUTER_URL=self.router_url,
        )
        config = Path.home() / ".config" / "pip" / "pip.conf"
        if config.is_file():  # the machine's way to its package index
            env["PIP_CONFIG_FILE"] = str(config)
        for name in ("IIR_HOME", "PYTHONPATH", "VIRTUAL_ENV", "XDG_DATA_HOME"):
            env.pop(name, None)
        return env
