"""`iir-agent engines`: what is listed, refused, installed and removed, as a user meets it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import local_agent.cli.engines
from local_agent.domain import HostFacts
from local_agent.environments import Environments
from tests.local_agent.command_line import Run, StandInAgent, write_config
from tests.local_agent.harness import ROOT

LINUX = HostFacts(platform="linux", arch="x86_64", memory_mb=8_000)
MAC = HostFacts(platform="darwin", arch="arm64", memory_mb=8_000)
STAMP = {"requirements": ["mlx-lm==0.1"], "python": "3.12"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    def become(facts: HostFacts) -> None:
        monkeypatch.setattr(local_agent.cli.engines, "this_host", lambda _: facts)

    become(LINUX)
    return become


def put(home: Path, name: str, stamp: object = None) -> Path:
    """Put an environment there, as `install` leaves it."""
    folder = home / "engines" / ".made" / f"{name}-1"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    if stamp is not None:
        (folder / "iir-engine.json").write_text(json.dumps(stamp))
    (home / "engines" / name).symlink_to(folder)
    return folder


def rows(run: Run) -> dict[str, tuple[str, str]]:
    listed = json.loads(run("engines", "list", "--json").output)
    return {row["engine"]: (row["state"], row["what"]) for row in listed}


def test_all_are_listed_with_what_to_do(run: Run, home: Path, host: Any) -> None:
    found = rows(run)
    assert found["mlx_lm"] == ("not installed", "iir-agent engines install mlx_lm (0.42 GB)")
    assert found["vllm_metal"][0] == "not for this host"
    assert set(found) == {"mlx_lm", "torch_mps", "vllm_metal", "vllm_mlx"}
    put(home, "mlx_lm", STAMP)
    put(home, "torch_mps")
    assert rows(run)["mlx_lm"] == ("outdated", "iir-agent engines install mlx_lm")
    assert rows(run)["torch_mps"] == ("installed", "an environment of yours")
    host(MAC)
    assert rows(run)["vllm_metal"][0] == "not installed"


def test_the_table_keeps_square_brackets(run: Run, home: Path, host: Any) -> None:
    exact = ["mlx-lm==0.32.2", "mlx[cpu]==0.32.4", "transformers==5.24.0"]
    held_to = (ROOT / "local_agent" / "constraints" / "mlx_lm.txt").read_bytes()
    digest = hashlib.sha256(held_to).hexdigest()
    put(home, "mlx_lm", {**STAMP, "requirements": exact, "constraints": digest})
    assert "mlx[cpu]==0.32.4" in run("engines", "list").output


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("vllm_metal", "vllm-metal runs on Apple Silicon only", 1),
        ("llama_cpp", "engine llama_cpp is not installed by this command; it has: mlx_lm", 1),
        ("nix", "no engine is named nix; this command installs: mlx_lm, torch_mps", 2),
    ],
)
def test_what_can_not_be_installed_is_said(
    run: Run, host: Any, name: str, words: str, code: int
) -> None:
    assert words in run("engines", "install", name, code=code).stderr
    answer = json.loads(run("engines", "install", name, "--json", code=code).output)
    assert words in answer["error"]


def test_a_failed_installation_says_why_and_leaves_nothing(
    run: Run, home: Path, host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in *"import platform"*) echo 3.12 x86_64 ;;\n'
        '*"-m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;\n'
        "*) echo 'ERROR: No matching distribution found for mlx-lm' && exit 1 ;; esac\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(
        local_agent.cli.engines, "_environments", lambda context: _with(python, context)
    )
    assert "does not have this version" in run("engines", "install", "mlx_lm", code=1).stderr
    assert rows(run)["mlx_lm"][0] == "not installed"
    assert not (home / "engines" / "mlx_lm").exists()


def _with(python: Path, context: Any) -> Any:
    return Environments(context.settings.engines_dir, {"PATH": "/bin:/usr/bin"}, str(python))


def test_one_that_is_removed_is_gone_for_the_running_agent_too(
    run: Run, home: Path, host: Any, agent: StandInAgent
) -> None:
    folder = put(home, "mlx_lm", STAMP)
    assert run("engines", "remove", "mlx_lm").output == "removed mlx_lm\n"
    assert (agent.reloads, folder.exists()) == (1, False)
    assert run("engines", "remove", "mlx_lm").output == "mlx_lm was not installed\n"
    assert "no engine is named nix" in run("engines", "remove", "nix", code=2).stderr


def test_one_that_serves_a_model_stays(
    run: Run, home: Path, host: Any, agent: StandInAgent
) -> None:
    agent.workers = [
        {"model": "my model", "engine": "mlx_lm", "state": "ready", "pid": 4711, "in_flight": 0}
    ]
    folder = put(home, "mlx_lm", STAMP)
    for verb in ("remove", "install"):
        said = run("engines", verb, "mlx_lm", code=1).stderr
        assert "unload it first: iir-agent unload 'my model'" in said
    assert folder.exists()


def test_the_check_of_a_file_names_the_command(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").touch()
    models = f"[{{id: m, engine: torch_mps, source: {tmp_path / 'qwen'}}}]"
    write_config(home, f"known_models: false\nmodels: {models}")
    said = " ".join(run("config", "check").output.split())
    assert "iir-agent engines install torch_mps" in said
