"""`iir-agent` as a user meets it: a stand-in agent on loopback, no network."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from local_agent.cli.running import addresses
from tests.local_agent.command_line import Run, StandInAgent, write_config


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
    fake = "known_models: false\nmodels: [{id: fake, engine: simulated}]\n"
    write_config(home, f"{fake}memory_budget: 3 GiB\nmemory_guard: strict")
    assert run("config", "check").output == (
        "agent.yaml is good; the models:\n  fake  (engine simulated)\n"
        "memory for all models: 3072 MiB (`memory_budget` says so); memory_guard: strict\n"
    )
    write_config(home, f"{fake}memory_guard: loose")
    assert "line 3: memory_guard" in run("config", "check", code=1).stderr
    other = tmp_path / "other.yaml"
    assert "other.yaml: can't be read" in run("config", "check", str(other), code=1).stderr
    other.write_text("drain_s: -1")
    assert "other.yaml, line 1: drain_s" in run("config", "check", str(other), code=1).stderr


def test_a_running_agent_learns_of_pulls_and_removals(
    run: Run, home: Path, gguf: Path, agent: StandInAgent
) -> None:
    assert "does not know it yet" in run("pull", str(gguf), "--id", "new").output
    run("rm", "new")
    assert agent.reloads == 2


def test_the_running_agent_knows_the_status(run: Run, agent: StandInAgent) -> None:
    rows = {row["id"]: row["status"] for row in json.loads(run("ls", "--json").output)}
    assert rows == {
        "smollm2-135m": "loaded",
        "local_mistral-7b-instruct-q4": "not pulled",
        "extra": "failed",
    }


@pytest.mark.parametrize("models", [[{"id": "gpt"}], [{"id": 3, "status": {}}], "none"])
def test_another_server_on_the_port_is_no_agent(run: Run, agent: StandInAgent, models: Any) -> None:
    agent.models, agent.workers = models, [{"pid": "x"}]
    rows = {row["id"]: row["status"] for row in json.loads(run("ls", "--json").output)}
    assert rows["smollm2-135m"] == "not pulled"
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
    assert re.search(r"running +waiting", table)
    assert re.search(r" 803 +907 ", table)
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
