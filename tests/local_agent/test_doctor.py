"""`iir-agent doctor` on this host: each finding with its level and its fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local_agent.cli.app import app
from local_agent.config import AgentConfig
from local_agent.config_file import parse_config
from local_agent.doctor.finding import Finding
from local_agent.doctor.host import (
    MemoryNow,
    examine_address,
    examine_disk,
    examine_memory,
    examine_port,
)
from local_agent.doctor.models import Plan, examine_models, plans
from local_agent.domain import HostFacts
from local_agent.memory.estimate import budget_mb
from local_agent.process import free_port
from local_agent.weights.store import WeightStore
from shared.http.serve import bind
from tests.local_agent.macos_outputs import AIRPLAY_SERVER
from tests.threaded import served_by

HOST = HostFacts(
    platform="linux", arch="x86_64", memory_mb=16_000, modules=frozenset({"xllamacpp"})
)


def config(*models: str, more: str = "") -> AgentConfig:
    text = "".join(f"  - {model}\n" for model in models)
    text = f"known_models: false\nmodels:\n{text}{more}"
    return parse_config(text, {}, name="agent.yaml", base=Path("/base"))


def planned(tmp_path: Path, *models: str, host: HostFacts = HOST) -> list[Plan]:
    return plans(config(*models), WeightStore(tmp_path), host)


def of_models(
    tmp_path: Path, *models: str, host: HostFacts = HOST, more: str = ""
) -> list[tuple[str, str, str | None]]:
    found = config(*models, more=more)
    budget = budget_mb(host, budget=found.memory_budget, reserve=found.memory_reserve)
    findings = examine_models(plans(found, WeightStore(tmp_path), host), budget)
    return [(one.level, one.message, one.fix) for one in findings]


# -- models --------------------------------------------------------------------------------------


def test_models_that_can_run(tmp_path: Path) -> None:
    assert of_models(
        tmp_path, "{id: s, engine: simulated, memory: 96 MiB}", "{id: o, url: 'http://127.0.0.1:1'}"
    ) == [
        ("ok", "simulated, about 96 of 12800 MiB", None),
        ("ok", "a server of yours at http://127.0.0.1:1", None),
    ]


@pytest.mark.parametrize(("more", "level"), [("", "note"), (", preload: true", "problem")])
def test_weights_that_are_not_pulled(tmp_path: Path, more: str, level: str) -> None:
    found = of_models(tmp_path, f"{{id: m, source: 'hf:a/b:c.gguf', size_bytes: 4370000000{more}}}")
    assert found == [(level, "its weights are not on this host (4.37 GB)", "iir-agent pull m")]


def test_an_engine_that_is_missing_is_told_before_the_pull(tmp_path: Path) -> None:
    host = replace(HOST, modules=frozenset())
    problem, note = of_models(tmp_path, "{id: m, source: 'hf:a/b:c.gguf'}", host=host)
    assert problem[:2] == ("problem", "llama.cpp is not installed")
    assert problem[2] == (
        "install this program again with its extra `llama` (in a checkout: make setup)"
    )
    assert note[2] == "iir-agent pull m"


def test_an_option_that_the_engine_does_not_have(tmp_path: Path) -> None:
    ((level, message, _),) = of_models(tmp_path, "{id: s, engine: simulated, options: {speed: 1}}")
    assert (level, message) == ("problem", "engine simulated has no option speed")


@pytest.mark.parametrize(("more", "level"), [("", "note"), (", pin: true", "problem")])
def test_a_model_that_alone_is_too_big(tmp_path: Path, more: str, level: str) -> None:
    ((found, message, fix),) = of_models(
        tmp_path,
        f"{{id: s, engine: simulated, memory: 9 GiB{more}}}",
        more="memory_budget: 8 GiB",
    )
    assert (found, message) == (
        level,
        "it takes about 9216 MiB; the budget for all models is 8192 MiB",
    )
    assert "`memory_budget`" in str(fix)


def test_two_that_do_not_fit_together_are_fine(tmp_path: Path) -> None:
    each = "engine: simulated, memory: 5 GiB"
    found = of_models(
        tmp_path, f"{{id: a, {each}}}", f"{{id: b, {each}}}", more="memory_budget: 8 GiB"
    )
    assert [level for level, _, _ in found] == ["ok", "ok"]


# -- disk and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "level", "says"),
    [
        (
            80_000_000_000,
            "ok",
            "80.00 GB free for IIR_HOME; models that are not pulled need 4.37 GB",
        ),
        (4_400_000_000, "note", "need 4.37 GB"),
        (100_000_000, "problem", "0.10 GB free"),
    ],
)
def test_the_disk(tmp_path: Path, free: int, level: str, says: str) -> None:
    asked: list[Path] = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return free

    models = planned(tmp_path, "{id: m, source: 'hf:a/b:c.gguf', size_bytes: 4370000000}")
    finding = examine_disk(tmp_path / "not" / "made", models, free_bytes)
    assert finding.level == level
    assert says in finding.message
    assert asked == [tmp_path], "the folder that will hold it"
    assert (finding.fix is None) is (level == "ok")


def test_memory(tmp_path: Path) -> None:
    now = MemoryNow(total_mb=16_000, available_mb=9000, swap_mb=2000, swap_used_mb=10)
    (finding,) = examine_memory(12_800, [], now)
    assert (finding.level, finding.message) == (
        "ok",
        "budget 12800 of 16000 MiB, 9000 available now",
    )
    (finding,) = examine_memory(17_000, [], now)
    assert finding.level == "problem"
    assert "more than the host has" in finding.message
    models = planned(
        tmp_path,
        "{id: a, engine: simulated, memory: 8 GiB, preload: true}",
        "{id: b, engine: simulated, memory: 8 GiB, pin: true}",
        "{id: c, engine: simulated, memory: 8 GiB}",
    )
    swapping = replace(now, swap_mb=8000, swap_used_mb=7000)
    _, together, swap = examine_memory(12_800, models, swapping)
    assert "16384 MiB together" in together.message
    assert "7000 of 8000 MiB of swap" in swap.message
    assert together.level == swap.level == "note"


# -- ports ---------------------------------------------------------------------------------------


@contextmanager
def web_server(server: str, body: bytes = b"{}") -> Iterator[int]:
    """Run a server on loopback that calls itself so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(403)
            self.send_header("server", server)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with served_by(Handler) as port:
        yield port


def of_port(**values: Any) -> list[Finding]:
    usual: dict[str, Any] = {"host": "127.0.0.1", "port": None, "running_on": None}
    return list(examine_port(**{**usual, **values}))


def test_a_port_that_is_free() -> None:
    port = free_port()
    assert of_port(port=port) == [Finding("port", "ok", f"port {port} on 127.0.0.1 is free")]
    assert of_port(usual=(port,)) == [Finding("port", "ok", f"port {port} on 127.0.0.1 is free")]


def test_a_port_that_is_taken() -> None:
    spare = free_port()
    with web_server("nginx") as port:
        taken = f"port {port} on 127.0.0.1 is taken by another program"
        (finding,) = of_port(port=port)
        assert (finding.level, finding.message) == ("problem", taken)
        assert finding.fix == "set AGENT_PORT to another one, or unset it"
        (finding,) = of_port(usual=(port, spare))
        assert (finding.level, finding.message) == ("note", f"{taken}; the agent will take {spare}")
        (finding,) = of_port(usual=(port,))
        assert finding.level == "problem"
        (finding,) = of_port(port=port, running_on=f"http://127.0.0.1:{port}")
        assert finding == Finding("port", "ok", f"the agent has http://127.0.0.1:{port}")


def test_a_silent_program_on_the_port_does_not_hold_the_doctor_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("local_agent.doctor.host._ASK_S", 0.05)
    with bind("127.0.0.1", 0) as listener:
        (finding,) = of_port(port=listener.getsockname()[1])
    assert "taken by another program" in finding.message


def test_airplay_is_recognised() -> None:
    with web_server(AIRPLAY_SERVER) as port:
        taken, airplay = of_port(port=port)
    assert taken.message == f"port {port} on 127.0.0.1 is taken by AirPlay"
    assert airplay.level == "note"
    assert "AirPlay Receiver" in str(airplay.fix)


def test_an_address_that_is_not_ours() -> None:
    (finding,) = of_port(host="192.0.2.1", port=free_port())
    assert finding.level == "problem"
    assert "nobody can listen on 192.0.2.1" in finding.message


@pytest.mark.parametrize(
    ("host", "url", "level"),
    [
        ("127.0.0.1", None, None),
        ("192.168.1.5", None, None),
        ("0.0.0.0", "http://192.168.1.5:5000", None),
        ("0.0.0.0", None, "problem"),
        ("0.0.0.0", "http://127.0.0.1:5000", "note"),
        ("127.0.0.1", "http://localhost:5000", "note"),
    ],
)
def test_where_the_router_is_told_to_look(host: str, url: str | None, level: str | None) -> None:
    found = [finding.level for finding in examine_address(host, url)]
    assert found == ([] if level is None else [level])


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return how to run the command without a router, an agent or a container engine."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("AGENT_PORT", str(free_port()))
    monkeypatch.setenv("ROUTER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "agent").mkdir(parents=True)

    def invoke(text: str | None, *flags: str) -> Any:
        if text is not None:
            (tmp_path / "home" / "agent" / "agent.yaml").write_text(text)
        return CliRunner().invoke(app, ["doctor", *flags])

    return invoke


def test_a_host_without_a_problem_exits_with_0(run: Callable[..., Any]) -> None:
    result = run("known_models: false\nmodels: [{id: s, engine: simulated}]", "--json")
    found = {finding["check"]: finding for finding in json.loads(result.output)}
    assert result.exit_code == 0, result.output
    assert set(found) == {
        *("agent", "port", "credential", "router", "configuration", "model s", "memory"),
        *("disk", "containers"),
    }
    assert found["agent"]["fix"] == "iir-agent serve"
    assert found["router"]["level"] == "note", "nothing here needs one"
    assert found["configuration"] == {
        "check": "configuration", "level": "ok", "message": "agent.yaml is good", "fix": None,
    }  # fmt: skip


def test_a_problem_exits_with_1_and_names_line_and_field(run: Callable[..., Any]) -> None:
    result = run("models:\n  - {id: x, source: './x.gguf', context: '${env.NOT_SET}'}")
    assert result.exit_code == 1
    (row,) = (line for line in result.output.splitlines() if line.startswith("configuration"))
    assert "problem" in row
    assert (
        "agent.yaml, line 2: models[0].context: the environment variable NOT_SET is not set" in row
    )
    assert "iir-agent config check" in row


def test_wrong_settings_are_told_like_everywhere(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_PORT", "many")
    result = run(None)
    assert result.exit_code == 2
    assert "AGENT_PORT" in result.output
