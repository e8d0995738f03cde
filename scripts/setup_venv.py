"""Bring the virtual environment up to date: `make setup`. Standard library only.

`run` installs the project with its extra `llama`, `dev` the developer tools as well. A stamp holds
a digest of what was installed, from what and for which interpreter; while it fits, nothing is done.
pip's output goes to a log in the environment, its tail is shown when pip fails.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_LLAMA = (
    "There is no wheel of xllamacpp (llama.cpp) for this platform. Everything else is installed,\n"
    "but the embedded model can't run here: use a provider or a server that you already run\n"
    "(docs/agents.md, engine `external`)."
)


def main() -> int:
    """Make or renew the environment; 0 if it is up to date afterwards."""
    parser = argparse.ArgumentParser(description="Bring the virtual environment up to date.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("part", choices=["run", "dev"])
    asked = parser.parse_args()
    return Environment(asked.venv.absolute()).prepare(asked.part)


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold a file or a folder for this process: of two at once the second waits."""
    held = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


class Environment:
    """One virtual environment, its stamps and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / "setup.log"

    def prepare(self, part: str) -> int:
        """Install what the part lacks; return the exit code. Two environments can be prepared at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder):
            return self._prepare(part)

    def _prepare(self, part: str) -> int:
        if self._is_current("run") and (part == "run" or self._is_current("dev")):
            return 0
        try:
            self._make()
            if not self._is_current("run"):
                with alone(ROOT / "pyproject.toml"):  # it writes into the checkout, too
                    self._install_project()
            if part == "dev" and not self._is_current("dev"):
                self._install("the developer tools", ["-r", str(ROOT / "requirements-dev.txt")])
                self._stamp("dev")
        except subprocess.CalledProcessError:
            return 1
        return 0

    def _make(self) -> None:
        """Make the environment unless it is this interpreter's, in this place, and has a pip."""
        if self._origin_path().is_file() and self._origin_path().read_text() == self._origin():
            return
        print(f"making {self.folder.name} with Python {sys.version.split()[0]}", flush=True)
        if any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").is_file():
            print(f"VENV={self.folder} is no virtual environment: not touched", file=sys.stderr)
            raise subprocess.CalledProcessError(1, "venv")
        # the folder itself stays: it is what others wait for
        subprocess.run([_base_python(), "-m", "venv", "--clear", str(self.folder)], check=True)
        self._origin_path().write_text(self._origin())

    def _install_project(self) -> None:
        try:
            self._install("the packages", ["-e", f"{ROOT}[llama]"], is_last=False)
        except subprocess.CalledProcessError:
            if not re.search(r"No matching distribution found for xllamacpp", self.log.read_text()):
                self._explain()
                raise
            self._install("the packages without llama.cpp", ["-e", str(ROOT)])
            print(NO_LLAMA, flush=True)
        self._stamp("run")

    def _install(self, what: str, arguments: list[str], *, is_last: bool = True) -> None:
        """Run pip, quietly, with a sign of life; `is_last`: say why if it fails."""
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        # Sources are never compiled: that takes many minutes and a compiler. No wheel, no install.
        command += ["--no-input", "--only-binary", ":all:", *arguments]
        with self.log.open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                code = self._watch(child, what)
            except BaseException:
                child.terminate()
                child.wait()
                raise
        if code != 0:
            if is_last:
                self._explain()
            raise subprocess.CalledProcessError(code, "pip")

    def _watch(self, child: subprocess.Popen[bytes], what: str) -> int:
        """Wait for pip; after 2 s show a progress line, rewritten on a terminal."""
        started = time.monotonic()
        is_terminal = sys.stdout.isatty()
        shown_at = 0.0
        while True:
            try:
                code = child.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - started
            if elapsed > 2 and (
                shown_at == 0.0 or elapsed - shown_at > (0.5 if is_terminal else 15)
            ):
                shown_at = elapsed
                line = f"installing {what}: {elapsed:.0f} s{self._latest()}"
                print(
                    f"\r\033[K{line[:79]}" if is_terminal else line, end="" if is_terminal else "\n"
                )
                sys.stdout.flush()
        if shown_at:
            line = f"installing {what}: {'done in' if code == 0 else 'failed after'} "
            line += f"{time.monotonic() - started:.0f} s"
            print(f"\r\033[K{line}" if is_terminal else line, flush=True)
        return code

    def _latest(self) -> str:
        """Return what pip does at the moment, from its log."""
        text = self._tail_text()
        if "Installing collected packages" in text:
            return ", writing files"
        found = re.findall(r"^Collecting ([A-Za-z0-9._-]+)", text, re.MULTILINE)
        return f", {found[-1]}" if found else ""

    def _tail_text(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            return log.read().decode(errors="replace")

    def _explain(self) -> None:
        """Show the end of pip's output and, where it is known, the cause in one line."""
        text = self.log.read_text(errors="replace")
        print("\n".join(text.splitlines()[-15:]), file=sys.stderr)
        missing = re.findall(r"No matching distribution found for (\S+)", text)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if "No space left" in text:
            cause = "The disk is full: about 1 GB is needed."
        elif missing and not re.search(r"(NewConnectionError|Failed to establish|timed out)", text):
            cause = (
                f"No wheel of {missing[-1]} for Python {version} on this platform: "
                "name another interpreter, for example PYTHON=python3.12 make dev"
            )
        else:
            cause = "pip could not install: is the package index reachable?"
        print(f"{cause}\nThe whole output: {self.log}", file=sys.stderr)

    def _origin_path(self) -> Path:
        return self.folder / ".origin"

    def _origin(self) -> str:
        """Return what ties an environment to its place and interpreter."""
        return f"{self.folder}\n{ROOT}\n{os.path.realpath(_base_python())}\n{sys.version}\n"

    def _digest(self, part: str) -> str:
        names = ["pyproject.toml"] + (["requirements-dev.txt"] if part == "dev" else [])
        digest = hashlib.sha256(self._origin().encode())
        for name in names:
            digest.update((ROOT / name).read_bytes())
        return digest.hexdigest()

    def _is_current(self, part: str) -> bool:
        stamp = self.folder / f".stamp-{part}"
        if not stamp.is_file() or not self.python.exists():
            return False
        return stamp.read_text().strip() == self._digest(part)

    def _stamp(self, part: str) -> None:
        """Remember what was installed."""
        (self.folder / f".stamp-{part}").write_text(f"{self._digest(part)}\n")


def _base_python() -> str:
    """Return the interpreter behind the environment that we may run in."""
    return getattr(sys, "_base_executable", None) or sys.executable


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
