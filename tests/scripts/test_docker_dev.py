"""`make docker-dev` and `make docker-down` with a `docker` that answers and does nothing."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts.devstack.text import curl, snippet
from tests.threaded import served_by

ROOT = Path(__file__).parents[2]
KEY = "sk-iir-abcdefgh-" + "a" * 40
DOCKER = """#!/bin/sh
echo "$*" >>"$STAND_IN_LOG"
case "$*" in
  *"${STAND_IN_FAILS:-nothing}"*) echo "it failed" >&2; exit 1 ;;
  "compose port router 8000") echo 127.0.0.1:8123 ;;
  *ROUTER_KEY_FILE*) echo "$STAND_IN_KEY" ;;
  *"printenv AGENT_PULL") echo "$STAND_IN_PULL" ;;
  "compose config") echo "name: mine" ;;
  *"python -") cat >/dev/null; exit "${STAND_IN_WAIT:-0}" ;;
  "ps "*) echo left-over ;;
esac
"""


class Stage:
    """A PATH on which `docker` is a stand-in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        docker = self.bin / "docker"
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        self.log = folder / "log"
        self.log.touch()
        self.env = {
            "PATH": f"{self.bin}:{os.defpath}",
            "STAND_IN_LOG": str(self.log),
            "STAND_IN_KEY": KEY,
            "STAND_IN_PULL": "smollm2-135m",
            "IIR_HOME": str(folder / "home"),
            "DOCKER_AGENT": "container",
        }

    def run(self, action: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(ROOT / "scripts/docker_dev.sh"), action],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_it_ends_with_the_address_and_a_line_that_works_with_the_key(stage: Stage) -> None:
    done = stage.run("up")
    assert done.returncode == 0, done.stderr
    url = "http://127.0.0.1:8123"
    lines = done.stdout.splitlines()
    assert f"ready: {url}/v1" in lines
    assert curl(url, needs_key=True).replace("YOUR_KEY", KEY) in lines
    assert snippet(url, needs_key=True).replace("YOUR_KEY", KEY) in done.stdout
    assert any("up --detach --build --wait" in call for call in stage.asked)


def test_a_start_that_fails_says_why_and_what_helps(stage: Stage) -> None:
    done = stage.run("up", STAND_IN_FAILS=" up ")
    assert done.returncode == 1
    assert "ready:" not in done.stdout
    assert "ROUTER_PORT=8010 make docker-dev" in done.stderr
    assert any("compose logs" in call for call in stage.asked)


def test_a_model_that_does_not_come_is_no_success(stage: Stage) -> None:
    done = stage.run("up", STAND_IN_FAILS="python -")
    assert done.returncode == 1
    assert "ready:" not in done.stdout
    assert "does not answer yet" in done.stderr


def test_nobody_waits_for_a_model_that_is_not_pulled(stage: Stage) -> None:
    assert stage.run("up").returncode == 0
    assert any(call.endswith("python -") for call in stage.asked)
    stage.log.write_text("")
    done = stage.run("up", STAND_IN_PULL="")
    assert done.returncode == 0
    assert "ready:" in done.stdout
    assert not any(call.endswith("python -") for call in stage.asked)


@pytest.mark.parametrize("pulled", ["another", "smollm2-135m-instruct,another"])
def test_nobody_waits_for_the_embedded_model_if_others_are_pulled(
    stage: Stage, pulled: str
) -> None:
    done = stage.run("up", STAND_IN_PULL=pulled)
    assert done.returncode == 0
    assert not any(call.endswith("python -") for call in stage.asked)
    assert stage.run("up", STAND_IN_PULL="another, default").returncode == 0
    assert any(call.endswith("python -") for call in stage.asked)


@pytest.mark.parametrize("gone", [{"STAND_IN_FAILS": "ROUTER_KEY_FILE"}, {"STAND_IN_WAIT": "3"}])
def test_without_the_first_key_it_asks_for_a_key_of_yours(
    stage: Stage, gone: dict[str, str]
) -> None:
    done = stage.run("up", **gone)
    assert done.returncode == 0
    assert KEY not in done.stdout
    assert curl("http://127.0.0.1:8123", needs_key=True) in done.stdout.splitlines()
    assert "iir keys create --name NAME" in done.stdout


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("compose version", "docker compose (v2)"),
        ("config --quiet", "2.24 or newer is needed"),
        ("info", "does not answer"),
    ],
)
def test_what_is_missing_is_named(stage: Stage, fails: str, words: str) -> None:
    for action in ("up", "down"):
        done = stage.run(action, STAND_IN_FAILS=fails)
        assert done.returncode == 1
        assert words in done.stderr


def test_an_unknown_kind_of_agent_is_refused(stage: Stage) -> None:
    done = stage.run("up", DOCKER_AGENT="elsewhere")
    assert done.returncode == 1
    assert "native or container" in done.stderr
    assert stage.asked == []


def test_down_keeps_the_data_unless_told_otherwise(stage: Stage) -> None:
    assert stage.run("down").returncode == 0
    assert "compose --profile * down --remove-orphans" in stage.asked
    assert "rm --force left-over" in stage.asked  # a killed agent's worker
    assert any("network=mine-workers" in call for call in stage.asked)
    assert stage.run("down", VOLUMES="1").returncode == 0
    assert stage.asked[-1] == "compose --profile * down --remove-orphans --volumes"


# -- the agent beside the containers ---------------------------------------------------------------


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Return the script in a folder of its own, as in a checkout without `.env`."""
    folder = tmp_path / "checkout" / "scripts"
    folder.mkdir(parents=True)
    return Path(shutil.copy(ROOT / "scripts/docker_native_agent.sh", folder))


def native_run(script: Path, action: str, **env: str) -> str:
    done = subprocess.run(
        ["sh", str(script), action],
        env={"PATH": os.defpath, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_native_agent_takes_the_environment_before_env_file_before_the_default(
    native: Path,
) -> None:
    assert native_run(native, "pulled") == "smollm2-135m"
    (native.parents[1] / ".env").write_text('AGENT_PULL="a, b"\nIIR_HOME=/elsewhere\n')
    assert native_run(native, "pulled") == "a, b"
    assert native_run(native, "log") == "/elsewhere/logs/docker-agent.log"
    assert native_run(native, "pulled", AGENT_PULL="c") == "c"
    assert native_run(native, "pulled", AGENT_PULL="") == ""


def test_prometheus_is_told_where_the_native_agent_is(native: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    told = Path(native_run(native, "figures", IIR_HOME=str(home), AGENT_PORT="5100"))
    assert told.parent == home / "run"
    assert yaml.safe_load(told.read_text()) == [{"targets": ["host.docker.internal:5100"]}]
    assert stat.S_IMODE(told.stat().st_mode) == 0o644
    (native.parents[1] / ".env").write_text("IIR_HOME=kept\n")  # a path of the checkout
    told = Path(native_run(native, "figures"))
    assert told == native.parents[1] / "kept/run/prometheus-agents.yml"
    assert native_run(native, "figures", PROMETHEUS_AGENTS="./mine.yml") == "./mine.yml"


def test_a_native_agent_is_ended_however_long_its_path_is(native: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    program = folder / "iir-agent"
    program.write_text("#!/bin/sh\nwhile :; do read -r _; done\n")
    program.chmod(0o755)
    run = tmp_path / "home" / "run"
    run.mkdir(parents=True)
    with subprocess.Popen([program, "serve"], stdin=subprocess.PIPE) as process:
        (run / "docker-agent.pid").write_text(f"{process.pid}\n")
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        try:
            # what `ps` takes for the width of the terminal
            native_run(native, "stop", IIR_HOME=str(tmp_path / "home"), COLUMNS="80")
            reaper.join(10)
            assert process.returncode == -signal.SIGTERM
        finally:
            process.kill()
    assert list(run.iterdir()) == []


class Router(http.server.BaseHTTPRequestHandler):
    """Says of its default model what it is told to, one answer after the other, to who has the key."""

    answers: list[tuple[int, str]]

    def do_GET(self) -> None:
        status, value = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.headers["authorization"] != f"Bearer {KEY}":
            status = 500
        body = json.dumps({"status": {"value": value}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def router() -> Iterator[tuple[type[Router], int]]:
    handler = type("Handler", (Router,), {"answers": [(200, "loaded")]})
    with served_by(handler) as port:
        yield handler, port


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        (
            [(404, ""), (200, "downloading"), (200, "loading"), (200, "loaded")],
            0,
            ["no agent has it yet", "downloading", "loading"],
        ),
        ([(401, "")], 3, []),
        ([(503, ""), (200, "loaded")], 0, ["the router answers 503"]),
        ([(200, "failed")], 1, ["failed"]),
        ([(404, "")], 1, ["no agent has it yet"]),
    ],
)
def test_waiting_for_the_model(
    router: tuple[type[Router], int],
    tmp_path: Path,
    answers: list[tuple[int, str]],
    code: int,
    said: list[str],
) -> None:
    handler, port = router
    handler.answers = answers
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    text = (ROOT / "scripts/docker_wait.py").read_text()
    text = text.replace("PORT = 8000", f"PORT = {port}").replace(
        "HOPELESS_S = 120.0", "HOPELESS_S = 0"
    )
    done = subprocess.run(
        [sys.executable, "-"],
        input=text,
        env={"ROUTER_KEY_FILE": str(key)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    lines = [line.rpartition(" (")[0] for line in done.stdout.splitlines()]
    assert lines == [f"the embedded model: {one}" for one in said]
    assert KEY not in done.stdout + done.stderr
