"""Engines' environments: whole or not at all, one at a time, never under a running worker."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_agent.domain import HostFacts
from local_agent.environments import Environments, InstallFailed
from local_agent.ports import Recipe
from local_agent.watched_command import CommandFailed, Stall, run_watched, step_of
from local_agent.weights.files import locked

ARCH = platform.machine().lower()
HOST = HostFacts(platform=sys.platform, arch=ARCH, memory_mb=8_000)
RECIPE = Recipe(
    requirements=("some-engine==1.0",), pythons=("3.12",), modules=("some_engine",), size_mb=1
)
# a Python that makes environments with itself in them, and says what pip would
_PYTHON = """#!/bin/sh
here="$(dirname "$0")"
case "$*" in
    *"import platform"*) echo "3.12 {arch}" ;;
    *"-m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *"-m pip "*) echo "$* HUB=$HF_TOKEN TMP=$TMPDIR PYTHONPATH=$PYTHONPATH" >> "{log}"
        echo "Downloading some_engine-1.0-py3-none-any.whl (3.5 MB)"
        {pip} ;;
    *"import some_engine"*) {check} ;;
    *) exit 9 ;;
esac
"""


class Place:
    """A folder with a Python that does what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "engines"
        self.log = folder / "pip.log"
        self.steps: list[str] = []
        self.behave()

    def behave(self, pip: str = "true", check: str = "true") -> None:
        python = self.folder / "python3.12"
        python.write_text(_PYTHON.format(arch=ARCH, log=self.log, pip=pip, check=check))
        python.chmod(0o755)

    @property
    def environments(self) -> Environments:
        env = {"PATH": os.defpath, "HF_TOKEN": "hf_secret", "PYTHONPATH": "/somewhere"}
        python = str(self.folder / "python3.12")
        return Environments(self.root, env, python=python, constraints=self.folder / "held to")

    def install(self, recipe: Recipe = RECIPE) -> None:
        self.environments.install("toy", recipe, HOST, lambda step: self.steps.append(step.what))

    def made(self) -> list[str]:
        return [path.name for path in (self.root / ".made").glob("toy-*")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_is_installed_with_what_is_pinned_and_without_secrets(place: Place) -> None:
    place.install()
    assert os.access(place.root / "toy" / "bin" / "python", os.X_OK)
    found = place.environments.find("toy")
    assert found is not None
    assert (found.is_ours, found.requirements, found.python) == (
        True,
        ("some-engine==1.0",),
        "3.12",
    )
    said = place.log.read_text()
    assert "install --only-binary=:all:" in said
    assert "some-engine==1.0 HUB= TMP=" in said
    assert said.endswith("PYTHONPATH=\n")
    assert {"making the environment", "installing", "checking"} <= set(place.steps)
    assert not (place.root / "toy" / ".scratch").exists()


def test_what_comes_along_is_held_to_versions_and_other_ones_make_it_outdated(place: Place) -> None:
    def is_outdated(recipe: Recipe = RECIPE) -> bool:
        found = place.environments.find("toy")
        assert found is not None
        return place.environments.is_outdated("toy", found, recipe)

    place.install()
    assert "--constraint" not in place.log.read_text()
    assert not is_outdated()
    held_to = place.folder / "held to" / "toy.txt"
    held_to.parent.mkdir()
    held_to.write_text("numpy==2.2.6\n")
    assert is_outdated()
    place.install()
    assert f"--constraint {held_to} some-engine==1.0" in place.log.read_text()
    assert not is_outdated()
    assert is_outdated(replace(RECIPE, requirements=("some-engine==1.1",)))


@pytest.mark.parametrize(
    ("pip", "check", "words"),
    [
        ("echo 'ERROR: No matching distribution found' && exit 1", "true", "does not have this"),
        ("echo 'No space left on device' && exit 1", "true", "the disk is full"),
        (
            "true",
            "echo 'ImportError: no Metal' && exit 1",
            "checking failed: ImportError: no Metal",
        ),
        ("kill -9 $$", "true", "pip failed"),
    ],
)
def test_what_fails_leaves_nothing(place: Place, pip: str, check: str, words: str) -> None:
    place.behave(pip, check)
    with pytest.raises(InstallFailed, match=words):
        place.install()
    assert place.environments.find("toy") is None
    assert place.made() == []


def test_a_failed_newer_version_leaves_the_older_one(place: Place) -> None:
    place.install()
    place.behave(pip="exit 1")
    with pytest.raises(InstallFailed):
        place.install(replace(RECIPE, requirements=("some-engine==2.0",)))
    found = place.environments.find("toy")
    assert found is not None
    assert found.requirements == ("some-engine==1.0",)
    place.behave()
    place.install(replace(RECIPE, requirements=("some-engine==2.0",)))
    found = place.environments.find("toy")
    assert found is not None
    assert found.requirements == ("some-engine==2.0",)
    assert len(place.made()) == 1


def test_what_was_broken_off_is_not_used_and_is_cleared_away(place: Place) -> None:
    half = place.root / ".made" / "toy-0badc0de" / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to(sys.executable)
    assert place.environments.find("toy") is None
    place.install()
    assert "toy-0badc0de" not in place.made()


def test_two_at_once_are_one_too_many(place: Place) -> None:
    with (
        locked(place.root / ".made" / "toy.lock", "toy"),
        pytest.raises(InstallFailed, match="being installed or removed by another process"),
    ):
        place.install()


def test_what_runs_is_neither_replaced_nor_removed(place: Place) -> None:
    place.install()
    python = place.root / "toy" / "bin" / "python"
    python.unlink()
    python.symlink_to(sys.executable)
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    command = [str(python), "-I", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for do in (place.install, lambda: place.environments.remove("toy")):
            with pytest.raises(InstallFailed, match=f"in use by process {process.pid}"):
                do()
        process.kill()
    assert place.environments.remove("toy")
    assert place.environments.find("toy") is None
    assert place.made() == []
    assert not place.environments.remove("toy")


def test_an_environment_of_the_user_s_is_left_alone(place: Place) -> None:
    python = place.root / "toy" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with pytest.raises(InstallFailed, match="an environment of yours"):
        place.install()
    with pytest.raises(InstallFailed, match="was not installed by this command"):
        place.environments.remove("toy")
    assert python.exists()


@pytest.mark.parametrize(
    ("recipe", "host"),
    [(replace(RECIPE, pythons=("3.99",)), HOST), (RECIPE, replace(HOST, arch="other"))],
)
def test_a_python_that_does_not_fit_is_not_taken(
    place: Place, recipe: Recipe, host: HostFacts
) -> None:
    with pytest.raises(InstallFailed, match=r"it needs Python 3\.\d+ for"):
        place.environments.install("toy", recipe, host, lambda _: None)


def test_a_small_disk_is_refused_before_anything_is_made(place: Place) -> None:
    with pytest.raises(InstallFailed, match="not enough disk space"):
        place.install(replace(RECIPE, size_mb=10**9))
    assert not place.log.exists()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("Collecting mlx-lm==0.32.2\n", "looking for mlx-lm==0.32.2"),
        (
            "  Downloading https://host.example/x/torch-2.13.0-cp312-none-any.whl (83.5 MB)\n",
            "downloading torch 2.13.0 (83.5 MB)",
        ),
        ("Using cached numpy-2.4.0-cp311.whl (16 MB)\n", "downloaded before: numpy 2.4.0 (16 MB)"),
        ("Installing collected packages: a, b\n", "unpacking"),
        ("Requirement already satisfied: a\n", None),
    ],
)
def test_pip_s_lines_are_told_without_addresses(line: str, what: str | None) -> None:
    assert step_of(line) == what


def test_a_command_that_stalls_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"{sys.executable} -c 'import time; time.sleep(600)' & echo $! > {pid_file}; wait"
    now = iter(range(0, 10_000, 100))
    with pytest.raises(CommandFailed) as failed:
        run_watched(
            ["/bin/sh", "-c", script],
            folder=tmp_path,
            env={"PATH": os.defpath},
            what="waiting",
            report=lambda _: None,
            clock=lambda: float(next(now)),
            stalled_s=50,
            look_every_s=0.01,
        )
    assert failed.value.is_stalled
    # its pipe is closed by the last of them: `run_watched` would not have come back else
    assert pid_file.read_text().strip().isdecimal()


def test_a_stall_is_counted_from_the_last_move() -> None:
    now = [0.0]
    stall = Stall(lambda: now[0], after_s=10)
    for at, state, has_come in [(5, 1, False), (14, 1, False), (14, 2, False), (25, 2, True)]:
        now[0] = at
        assert stall.has_come(state) is has_come


def test_the_stamp_holds_no_path(place: Place) -> None:
    place.install()
    stamp = (place.root / "toy" / "iir-engine.json").read_text()
    assert set(json.loads(stamp)) == {"requirements", "python", "constraints"}
