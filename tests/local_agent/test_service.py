"""The agent as a service: what its file says, and what the service manager is asked."""

from __future__ import annotations

import json
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import local_agent.cli.service
from local_agent.cli.app import app
from local_agent.control.identity import hold_identity
from local_agent.service import files
from local_agent.service.control import (
    Launchd,
    Outcome,
    ServiceProblem,
    Systemd,
    parse_listed,
    parse_shown,
)
from local_agent.service.definition import Definition, define, plist, unit

# https://github.com/Homebrew/homebrew-services/issues/601
LISTED = """\
{
\t"StandardOutPath" = "/usr/local/var/log/node_exporter.log";
\t"LimitLoadToSessionType" = "Aqua";
\t"StandardErrorPath" = "/usr/local/var/log/node_exporter.err.log";
\t"Label" = "homebrew.mxcl.node_exporter";
\t"OnDemand" = true;
\t"LastExitStatus" = 0;
\t"PID" = 40425;
\t"Program" = "/usr/local/opt/node_exporter/bin/node_exporter_brew_services";
\t"ProgramArguments" = (
\t\t"/usr/local/opt/node_exporter/bin/node_exporter_brew_services";
\t);
};
"""
ODD = 'a "b" 100% $HOME \\ ü'
PATHS = Path("/Users/me/Library/iir")


def service(home: Path = PATHS, program: str = "/opt/venv/bin/iir-agent") -> Definition:
    return define(
        (program, "serve"),
        variables={"IIR_HOME": str(home)},
        folder=home,
        log=home / "logs" / "agent.log",
        drain_s=60.0,
    )


class FakeManager:
    """A `launchctl` or `systemctl` that answers as told, and remembers what it was asked."""

    def __init__(self, **answers: Outcome) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, argv: Sequence[str], stop_s: float = 0.0) -> Outcome:
        words = tuple(argv)
        self.asked.append(words)
        verb = next(word for word in words[1:] if not word.startswith("-"))
        return self.answers.get(verb.replace("-", "_"), Outcome(0))

    @property
    def verbs(self) -> list[str]:
        return [
            next(word for word in words[1:] if not word.startswith("-")) for words in self.asked
        ]


# -- what the file says --------------------------------------------------------------------------


@pytest.mark.parametrize("home", [PATHS, Path("/Users/me") / ODD, Path("/Users/a & <b>")])
def test_a_launch_agent_says_what_was_meant(home: Path) -> None:
    found = plistlib.loads(plist(service(home)))
    assert found["ProgramArguments"] == ["/opt/venv/bin/iir-agent", "serve"]
    assert found["EnvironmentVariables"]["IIR_HOME"] == str(home)
    assert "/opt/homebrew/bin" in found["EnvironmentVariables"]["PATH"].split(":")
    assert found["WorkingDirectory"] == str(home)
    assert found["StandardErrorPath"] == str(home / "logs" / "agent.log")
    # it comes again when it failed, and stays away when somebody ended it
    assert (found["RunAtLoad"], found["KeepAlive"]) == (True, {"SuccessfulExit": False})
    # launchd kills what is not gone by then, so it is longer than a drain
    assert found["ExitTimeOut"] > 60


def test_a_unit_comes_again_and_leaves_its_workers_alone() -> None:
    lines = unit(service()).splitlines()
    assert 'ExecStart="/opt/venv/bin/iir-agent" "serve"' in lines
    assert f'Environment="IIR_HOME={PATHS}"' in lines
    assert {"Restart=on-failure", "KillMode=process", "TimeoutStopSec=75"} <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("name", ["plain", ODD])
def test_systemd_takes_the_unit(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    program = tmp_path / "with space 100%" / "iir-agent"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "iir-agent.service"
    path.write_text(unit(service(home, str(program))))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(path)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("program", ['/opt/a"b/iir-agent', "/opt/a\\b/iir-agent"])
def test_systemd_starts_nothing_there(program: str) -> None:
    with pytest.raises(ValueError, match="quote or a backslash"):
        unit(service(program=program))


def test_a_line_break_could_smuggle_a_line_in() -> None:
    with pytest.raises(ValueError, match="line break"):
        service(Path("/home/me\nExecStartPre=/bin/false"))


# -- launchd -------------------------------------------------------------------------------------


def launchd(run: FakeManager, stop_s: float = 75) -> Launchd:
    return Launchd(run, lambda _: None, stop_s=stop_s, uid=501)


def test_launchd_is_told_to_forget_the_old_one_first() -> None:
    run = FakeManager(list=Outcome(113))
    launchd(run).start(Path("/a.plist"))
    assert run.verbs == ["bootout", "list", "enable", "bootstrap"]
    assert run.asked[-1] == ("/bin/launchctl", "bootstrap", "gui/501", "/a.plist")
    assert run.asked[0][-1] == "gui/501/iir.agent"


def test_launchd_waits_for_the_old_one_to_end() -> None:
    run = FakeManager(bootout=Outcome(36), list=Outcome(0, LISTED))
    with pytest.raises(ServiceProblem, match="does not end"):
        launchd(run, stop_s=1).start(Path("/a.plist"))
    assert "bootstrap" not in run.verbs


def test_launchd_says_why_it_does_not_take_it() -> None:
    # https://github.com/Homebrew/homebrew-services/issues/528
    told = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors."
    run = FakeManager(list=Outcome(113), bootstrap=Outcome(5, err=told))
    with pytest.raises(ServiceProblem, match=r"exit 5.*own screen"):
        launchd(run).start(Path("/a.plist"))


def test_what_launchd_lists() -> None:
    found = parse_listed(LISTED)
    assert (found.is_known, found.pid, found.exit_code) == (True, 40425, 0)
    gone = LISTED.replace('\t"PID" = 40425;\n', "").replace('Status" = 0', 'Status" = 256')
    assert (parse_listed(gone).pid, parse_listed(gone).exit_code) == (None, 1)
    assert not launchd(FakeManager(list=Outcome(113))).state().is_known


# -- systemd -------------------------------------------------------------------------------------

RUNNING = "LoadState=loaded\nActiveState=active\nMainPID=4711\nExecMainStatus=0\nExecMainExitTimestampMonotonic=0\n"
FAILED = "LoadState=loaded\nActiveState=failed\nMainPID=0\nExecMainStatus=3\nExecMainExitTimestampMonotonic=77\n"
ABSENT = "LoadState=not-found\nActiveState=inactive\nMainPID=0\nExecMainStatus=0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(RUNNING, (True, 4711, None)), (FAILED, (True, None, 3)), (ABSENT, (False, None, None))],
)
def test_what_systemd_shows(text: str, expected: tuple[bool, int | None, int | None]) -> None:
    found = parse_shown(text)
    assert (found.is_known, found.pid, found.exit_code) == expected


def test_systemd_restarts_with_the_new_file() -> None:
    run = FakeManager()
    Systemd(run).start(Path("/iir-agent.service"))
    assert run.verbs == ["daemon-reload", "enable", "restart"]
    assert all(words[:2] == ("systemctl", "--user") for words in run.asked)


def test_a_session_without_systemd_is_named() -> None:
    told = "Failed to connect to bus: No medium found"
    with pytest.raises(ServiceProblem, match=r"No medium found, exit 1.*container"):
        Systemd(FakeManager(daemon_reload=Outcome(1, err=told))).start(Path("/a"))


def test_systemd_forgets_a_unit_whose_file_is_gone_whatever_it_answers() -> None:
    run = FakeManager(disable=Outcome(1), daemon_reload=Outcome(1), reset_failed=Outcome(1))
    Systemd(run).forget()
    assert run.verbs == ["disable", "daemon-reload", "reset-failed"]


def test_what_systemd_does_not_know_is_not_stopped() -> None:
    run = FakeManager(show=Outcome(0, ABSENT))
    Systemd(run).stop()
    assert run.verbs == ["show"]


# -- the file and the log ------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.plist"
    assert files.write(path, b"one")
    assert not files.write(path, b"one")
    assert files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["a.plist"]


def test_a_large_log_makes_room(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "agent.log"
    files.make_room(log)
    log.write_bytes(b"x" * 11)
    files.make_room(log, most_bytes=11)
    assert log.exists()
    files.make_room(log, most_bytes=10)
    assert not log.exists()
    assert log.with_name("agent.log.1").stat().st_size == 11


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_environment: None
) -> Callable[..., Result]:
    """Return how to run the command on a Linux whose systemd is a fake."""
    if sys.platform != "linux":
        pytest.skip("another system has another service manager")
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("AGENT_PORT", "0")

    def run(*words: str, fake: FakeManager | None = None, **answers: Outcome) -> Result:
        fake = fake or FakeManager()
        fake.answers = {"show": Outcome(0, ABSENT), **fake.answers, **answers}
        monkeypatch.setattr(local_agent.cli.service, "run_command", fake)
        return CliRunner().invoke(app, ["service", *words])

    return run


def unit_file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "systemd" / "user" / "iir-agent.service"


def test_a_dry_run_prints_the_file_and_writes_nothing(
    tmp_path: Path, run_linux: Callable[..., Result]
) -> None:
    found = run_linux("install", "--dry-run")
    assert found.exit_code == 0
    assert f'Environment="IIR_HOME={tmp_path}/home"' in found.output
    assert not unit_file(tmp_path).exists()


def test_install_twice_status_and_uninstall(
    tmp_path: Path, run_linux: Callable[..., Result]
) -> None:
    first = run_linux("install")
    assert first.exit_code == 0, first.output
    assert f"wrote {unit_file(tmp_path)}" in first.output
    # names only: a value could be a secret
    assert "set in this shell, and not for the service: AGENT_PORT, HF_TOKEN" in first.output
    text = unit_file(tmp_path).read_text()
    assert "hf_very_secret" not in text + first.output
    assert "AGENT_PORT" not in text

    again = run_linux("install")
    assert f"kept {unit_file(tmp_path)}" in again.output
    assert "started" in again.output

    runs = run_linux("status", "--json", show=Outcome(0, RUNNING))
    assert runs.exit_code == 0
    told = json.loads(runs.output)
    assert (told["is_installed"], told["is_current"], told["pid"]) == (True, True, 4711)

    unit_file(tmp_path).write_text(text.replace("RestartSec=10", "RestartSec=11"))
    stale = run_linux("status", show=Outcome(0, FAILED))
    assert stale.exit_code == 1
    assert "does not run\nlast exit code 3\nits file is not of this installation" in stale.output

    gone = run_linux("uninstall", show=Outcome(0, RUNNING))
    assert "removed" in gone.output
    assert not unit_file(tmp_path).exists()
    assert run_linux("status").output.startswith("not installed")
    assert "there was no service" in run_linux("uninstall").output


def test_a_second_agent_with_this_home_is_not_installed(
    tmp_path: Path, run_linux: Callable[..., Result]
) -> None:
    with hold_identity(tmp_path / "home" / "agent"):
        found = run_linux("install")
        assert found.exit_code == 1
        assert "an agent with this IIR_HOME runs already: stop it first" in found.output
        assert not unit_file(tmp_path).exists()
        # the service's own is replaced
        unit_file(tmp_path).parent.mkdir(parents=True)
        unit_file(tmp_path).write_text("an older one")
        assert run_linux("install", show=Outcome(0, RUNNING)).exit_code == 0


def test_an_upgrade_from_another_shell_loses_no_setting(
    tmp_path: Path, run_linux: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("drain_s: 300\n")
    monkeypatch.setenv("AGENT_CONFIG", str(tmp_path / "mine.yaml"))
    assert run_linux("install").exit_code == 0
    text = unit_file(tmp_path).read_text()
    assert "mine.yaml" in text
    monkeypatch.delenv("AGENT_CONFIG")
    refused = run_linux("install")
    assert refused.exit_code == 1
    assert "has AGENT_CONFIG, which is not set here" in refused.output
    assert unit_file(tmp_path).read_text() == text


def test_systemd_is_told_of_a_file_that_is_gone_or_is_the_old_one_again(
    tmp_path: Path, run_linux: Callable[..., Result]
) -> None:
    fails = Outcome(1, err="Job failed")
    first = FakeManager(restart=fails)
    assert run_linux("install", fake=first).exit_code == 1
    assert first.verbs[-3:] == ["disable", "daemon-reload", "reset-failed"]
    assert run_linux("install").exit_code == 0
    text = unit_file(tmp_path).read_text()
    unit_file(tmp_path).write_text("an older one")
    seen: list[str] = []

    class Refuses(FakeManager):
        """Starts the older one only."""

        def __call__(self, argv: Sequence[str], stop_s: float = 0.0) -> Outcome:
            done = super().__call__(argv, stop_s)
            if "restart" in argv:
                seen.append(unit_file(tmp_path).read_text())
                return done if seen[-1] == "an older one" else fails
            return done

    second = Refuses()
    assert run_linux("install", fake=second).exit_code == 1
    assert seen == [text, "an older one"]
    assert second.verbs[-3:] == ["daemon-reload", "enable", "restart"]
    third = FakeManager(show=Outcome(0, RUNNING))
    assert run_linux("uninstall", fake=third).exit_code == 0
    assert third.verbs == ["show", "disable", "disable", "daemon-reload", "reset-failed"]


def test_an_install_that_fails_leaves_what_was_there(
    tmp_path: Path, run_linux: Callable[..., Result]
) -> None:
    broken = {"daemon_reload": Outcome(1, err="Failed to connect to bus")}
    found = run_linux("install", **broken)
    assert found.exit_code == 1
    assert not unit_file(tmp_path).exists()
    unit_file(tmp_path).write_text("an older one")
    assert run_linux("install", **broken).exit_code == 1
    assert unit_file(tmp_path).read_text() == "an older one"
    # and nothing that goes wrong keeps an uninstall from removing it
    assert run_linux("uninstall", show=Outcome(1)).exit_code == 1
    assert not unit_file(tmp_path).exists()
    assert (
        "iir-agent: systemctl --user daemon-reload failed (Failed to connect to bus" in found.output
    )
