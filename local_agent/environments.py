"""The Python environments of engines: made whole or not at all, each apart from the agent's own.

`<root>/NAME` is a link to a folder below `<root>/.made`, and is set once the environment is whole and its
modules can be imported: what was broken off is never used. It is made by the standard library's `venv` and
its pip, with the user's own configuration of pip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from local_agent.domain import HostFacts
from local_agent.ports import Installable, Recipe
from local_agent.watched_command import CommandFailed, Report, Step, run_watched
from local_agent.weights.errors import AlreadyPulling
from local_agent.weights.files import locked
from local_agent.weights.pip import reason
from local_agent.weights.progress import gigabytes

_STAMP = "iir-engine.json"
_CONSTRAINTS = Path(__file__).with_name("constraints")
"""By engine: the versions of all that its requirements bring along, which `make lock` writes."""
_MADE = ".made"
_PIP = ("-I", "-m", "pip", "--disable-pip-version-check", "--no-input")
_INSTALL = ("install", "--only-binary=:all:", "--progress-bar=off")
_SECRET = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL).*", re.IGNORECASE)
_OF_A_PYTHON = re.compile(r"PYTHON.*|VIRTUAL_ENV|__PYVENV_LAUNCHER__|PIP_(TARGET|PREFIX|USER|ROOT)")
_ABOUT = "import platform, sys; print('%d.%d' % sys.version_info[:2], platform.machine().lower())"
_ASK_S = 20
_MB = 1024 * 1024


class InstallFailed(Exception):
    """An environment can't be made or removed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that is there.

    `is_ours`: it was made here, from `requirements`, held to `constraints` (their digest; empty: none);
    else somebody put it there by hand.
    """

    is_ours: bool
    requirements: tuple[str, ...] = ()
    python: str = ""
    constraints: str = ""


class Environments:
    """The environments below one folder, usually `$IIR_HOME/engines`. Holds nothing in memory."""

    def __init__(
        self,
        root: Path,
        env: Mapping[str, str],
        python: str = sys.executable,
        constraints: Path = _CONSTRAINTS,
    ) -> None:
        """Work below `root`, which need not exist.

        Args:
            root: the folder.
            env: what pip gets of it: all but secrets, and what belongs to a Python.
            python: the interpreter that is tried first.
            constraints: the folder with a file `NAME.txt` for each engine that has one.
        """
        self._root = root
        self._constraints = constraints
        self._python = python
        self._env = {
            name: value
            for name, value in env.items()
            if not _OF_A_PYTHON.fullmatch(name)
            and (name.startswith("PIP_") or not _SECRET.fullmatch(name))
        }

    def find(self, name: str) -> Installed | None:
        """Return what is known of an engine's environment; None if there is none."""
        place = self._root / name
        if not os.access(place / "bin" / "python", os.X_OK):
            return None
        try:
            stamp = json.loads((place / _STAMP).read_text(encoding="utf-8"))
            held_to = str(stamp.get("constraints", ""))
            return Installed(True, tuple(stamp["requirements"]), str(stamp["python"]), held_to)
        except (OSError, ValueError, KeyError, TypeError):
            return Installed(False)

    def is_outdated(self, name: str, found: Installed, recipe: Recipe) -> bool:
        """Tell whether an environment of ours would be made of other packages now."""
        now = recipe.requirements, _digest(self._held_to(name))
        return (found.requirements, found.constraints) != now

    def install(self, name: str, recipe: Recipe, host: HostFacts, report: Report) -> None:
        """Make an environment, and then put it in the place of an older one.

        A try that was broken off leaves nothing; what pip had whole it does not download again.

        Raises:
            InstallFailed: it can't be made; what was there is as it was.
        """
        found = self.find(name)
        if found is not None and not found.is_ours:
            raise InstallFailed(
                f"there is an environment of yours for {name}: remove it first, or keep it"
            )
        python = self._choose_python(recipe, host)
        with self._alone(name) as lock:
            self._refuse_in_use(name)
            self._require_space(recipe)
            folder = self._root / _MADE / f"{name}-{uuid.uuid4().hex[:8]}"
            try:
                self._make(
                    folder, python, recipe, held_to=self._held_to(name), report=report, lock=lock
                )
                self._refuse_in_use(name)  # somebody may have loaded a model in these minutes
                self._put(name, folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._sweep(name, keep=folder)

    def remove(self, name: str) -> bool:
        """Remove an environment that was made here; tell whether there was one.

        Raises:
            InstallFailed: it is in use, or not ours.
        """
        found = self.find(name)
        if found is not None and not found.is_ours:
            raise InstallFailed(f"the environment of {name} was not installed by this command")
        with self._alone(name):
            self._refuse_in_use(name)
            place = self._root / name
            is_there = place.is_symlink()
            place.unlink(missing_ok=True)
            self._sweep(name)
        return is_there

    def _held_to(self, name: str) -> Path | None:
        path = self._constraints / f"{name}.txt"
        return path if path.exists() else None

    def _make(
        self,
        folder: Path,
        python: str,
        recipe: Recipe,
        *,
        held_to: Path | None,
        report: Report,
        lock: int,
    ) -> None:
        scratch = folder / ".scratch"
        scratch.mkdir(parents=True)
        env = {
            **self._env,
            "TMPDIR": str(scratch),
            "PIP_RESUME_RETRIES": "20",  # known to newer pips, and no harm to others
            "PIP_NO_COLOR": "1",
        }

        def run(what: str, *command: str) -> None:
            report(Step(what))
            run_watched(command, folder=folder, env=env, what=what, report=report, pass_fds=(lock,))

        own = str(folder / "bin" / "python")
        more = [word for place in recipe.places for word in ("--find-links", place)]
        more += [] if held_to is None else ["--constraint", str(held_to)]
        try:
            run("making the environment", python, "-I", "-m", "venv", str(folder))
            run("installing", own, *_PIP, *_INSTALL, *more, *recipe.requirements)
            run("checking", own, "-I", "-c", f"import {', '.join(recipe.modules)}")
        except CommandFailed as failed:
            raise InstallFailed(_cause(failed)) from None
        except OSError as error:
            raise InstallFailed(f"it can't be installed: {error.strerror or error}") from None
        shutil.rmtree(scratch, ignore_errors=True)
        stamp = {
            "requirements": list(recipe.requirements),
            "python": self._about(own)[0],
            "constraints": _digest(held_to),
        }
        (folder / _STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")

    def _put(self, name: str, folder: Path) -> None:
        link = self._root / _MADE / f"{name}.link"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(_MADE) / folder.name)
        link.replace(self._root / name)

    def _sweep(self, name: str, keep: Path | None = None) -> None:
        """Remove what earlier tries and environments left."""
        for folder in (self._root / _MADE).glob(f"{name}-*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[int]:
        try:
            with locked(self._root / _MADE / f"{name}.lock", name) as lock:
                yield lock
        except AlreadyPulling:
            raise InstallFailed(
                f"{name} is being installed or removed by another process: wait for it"
            ) from None
        except PermissionError as error:
            raise InstallFailed(f"$IIR_HOME/engines can't be written: {error.strerror}") from None

    def _refuse_in_use(self, name: str) -> None:
        """What runs would find other files from one moment to the next."""
        place = f"{self._root.absolute() / name}{os.sep}"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and words[0].startswith(place):
                    raise InstallFailed(f"{name} is in use by process {process.pid}: end it first")

    def _require_space(self, recipe: Recipe) -> None:
        free = shutil.disk_usage(self._root).free
        needed = 2 * recipe.size_mb * _MB  # the packages, and what comes of them
        if free < needed:
            raise InstallFailed(
                f"not enough disk space: {gigabytes(needed)} needed, {gigabytes(free)} free;"
                " free some, or set IIR_HOME to a larger disk"
            )

    def _choose_python(self, recipe: Recipe, host: HostFacts) -> str:
        """Return an interpreter of a version, and for a processor, that there are packages for."""
        path = self._env.get("PATH")
        names = [shutil.which(f"python{version}", path=path) for version in recipe.pythons]
        for candidate in (self._python, *names):
            if candidate and self._fits(candidate, recipe, host):
                return candidate
        versions = " or ".join(recipe.pythons)
        raise InstallFailed(
            f"it needs Python {versions} for {host.arch}, and none is found on PATH: install one"
            f" (macOS: brew install python@{recipe.pythons[0]})"
        )

    def _fits(self, python: str, recipe: Recipe, host: HostFacts) -> bool:
        version, arch = self._about(python)
        return version in recipe.pythons and arch == host.arch

    def _about(self, python: str) -> tuple[str, str]:
        """Return an interpreter's version and processor; empty if it does not run."""
        command = [python, "-I", "-c", _ABOUT]
        try:
            done = subprocess.run(  # noqa: S603 - an interpreter of this host
                command, env=self._env, capture_output=True, text=True, timeout=_ASK_S, check=True
            )
            version, arch = done.stdout.split()
        except (OSError, ValueError, subprocess.SubprocessError):
            return "", ""
        return version, arch


def recipe_of(engine: object, host: HostFacts) -> Recipe | str | None:
    """Return what an engine's environment is made of, why it can't run here, or None if it has none."""
    return engine.recipe(host) if isinstance(engine, Installable) else None


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _cause(failed: CommandFailed) -> str:
    if failed.is_stalled:
        return "it made no progress for minutes: check the network, and try again"
    if failed.what == "installing":
        return str(reason(failed.output))
    lines = failed.output.strip().splitlines() or ["no reason"]
    if "ensurepip" in failed.output:
        return "this Python can't make environments: install its venv package (python3-venv)"
    return f"{failed.what} failed: {lines[-1]}"
