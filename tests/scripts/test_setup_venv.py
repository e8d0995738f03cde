"""Set-up with a stand-in for the environment's Python: what is installed, kept and said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import setup_venv
from scripts.setup_venv import Environment, alone

FAKE_PIP = """#!/bin/sh
echo "$*" >> "{calls}"
case "$*" in
  *"{fails_on}"*) echo "{message}"; exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def in_the_checkout(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs under test are named by their path in the checkout."""
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "requirements-dev.txt").write_text("pytest\n")
    monkeypatch.setattr(setup_venv, "ROOT", tmp_path)
    return tmp_path


def make_environment(
    project: Path, *, fails_on: str = "nothing at all", message: str = ""
) -> Environment:
    """Return an environment that is this interpreter's, with a pip that notes its calls."""
    environment = Environment(project / ".venv")
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    script = FAKE_PIP.format(calls=project / "calls", fails_on=fails_on, message=message)
    environment.python.write_text(script)
    environment.python.chmod(0o755)
    (environment.folder / "pyvenv.cfg").touch()
    (environment.folder / ".origin").write_text(environment._origin())
    return environment


def calls(project: Path) -> list[str]:
    path = project / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_run_installs_the_project_and_no_developer_tools(project: Path) -> None:
    assert make_environment(project).prepare("run") == 0
    assert len(calls(project)) == 1
    assert calls(project)[0].endswith("[llama]")


def test_a_second_time_nothing_is_done(project: Path) -> None:
    environment = make_environment(project)
    assert environment.prepare("dev") == 0
    assert len(calls(project)) == 2
    assert environment.prepare("dev") == 0
    assert environment.prepare("run") == 0
    assert len(calls(project)) == 2


def test_changed_requirements_are_installed(project: Path) -> None:
    environment = make_environment(project)
    environment.prepare("dev")
    (project / "requirements-dev.txt").write_text("pytest\nblack\n")
    environment.prepare("dev")
    assert len(calls(project)) == 3
    assert calls(project)[-1].endswith("requirements-dev.txt")


def test_without_a_wheel_of_llama_the_rest_is_installed_and_it_is_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = make_environment(
        project,
        fails_on="[llama]",
        message="ERROR: No matching distribution found for xllamacpp~=1",
    )
    assert environment.prepare("run") == 0
    assert calls(project)[1].endswith(str(project))
    assert "the embedded model can't run here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("ERROR: No matching distribution found for uvloop", "No wheel of uvloop for Python"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("Failed to establish a new connection", "is the package index reachable?"),
    ],
)
def test_a_failure_shows_the_tail_of_pip_and_the_cause(
    project: Path, capsys: pytest.CaptureFixture[str], message: str, cause: str
) -> None:
    environment = make_environment(project, fails_on="install", message=message)
    assert environment.prepare("run") == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert cause in shown
    assert environment.prepare("run") == 1, "a failed set-up must not count as done"


def test_a_folder_that_is_no_environment_is_not_removed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project / "work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    assert Environment(folder).prepare("run") == 1
    assert (folder / "thesis.txt").read_text() == "years"
    assert "is no virtual environment" in capsys.readouterr().err


def test_two_environments_are_prepared_at_once_and_of_one_the_second_waits(project: Path) -> None:
    first = make_environment(project)
    other = Environment(project / ".venv-3.10")
    shutil.copytree(first.folder, other.folder, dirs_exist_ok=True)
    (other.folder / ".origin").write_text(other._origin())
    with ThreadPoolExecutor() as pool:
        with alone(first.folder):
            waiting = pool.submit(first.prepare, "run")
            assert other.prepare("run") == 0
            assert len(calls(project)) == 1
            assert not waiting.done()
        assert waiting.result(30) == 0
    assert len(calls(project)) == 2


def pick(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(path), **variables}
    shell = shutil.which("sh") or "/bin/sh"
    return subprocess.run(
        [shell, "scripts/pick_python.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    for name in ("python3.14", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3.12").symlink_to(sys.executable)
    answer = pick(tmp_path)
    assert answer.returncode == 0, answer.stderr
    real = getattr(sys, "_base_executable", sys.executable)
    assert Path(answer.stdout.strip()).resolve() == Path(real).resolve()


def test_an_unusable_choice_is_refused_with_the_reason(tmp_path: Path) -> None:
    answer = pick(tmp_path, PYTHON=str(tmp_path / "nowhere"))
    assert answer.returncode == 1
    assert "does not run" in answer.stderr
    assert not answer.stdout


def test_an_old_or_too_new_python_is_refused(tmp_path: Path) -> None:
    for version, words in (("(3, 9)", "older than 3.10"), ("(3, 15)", "newer than 3.14")):
        fake = tmp_path / "python"
        start = f"import sys; sys.version_info = {version} + (0,); exec(sys.stdin.read())"
        fake.write_text(f'#!/bin/sh\nexec "{os.path.realpath(sys.executable)}" -c "{start}"\n')
        fake.chmod(0o755)
        answer = pick(tmp_path, PYTHON=str(fake))
        assert answer.returncode == 1
        assert words in answer.stderr
