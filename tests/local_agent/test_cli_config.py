"""`iir-agent config` and what `ps` says of the file, beside a real agent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import yaml
from typer.testing import CliRunner, Result

from local_agent.cli.app import app
from local_agent.config import AgentConfig, ModelConfig
from local_agent.config_schema import json_schema
from local_agent.engines import ENGINES
from shared.kit.logs import configure_logs
from tests.local_agent.harness import RunningAgent, StartAgent, external

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("AGENT_PORT", "1")  # nobody listens there
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    configure_logs(level="error", json=False)  # the agent is in this process, and so is its log

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert str(tmp_path) not in result.output
        return result

    return invoke


@pytest.fixture
def beside(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return how to run a command beside an agent, which goes on serving meanwhile."""

    async def invoke(agent: RunningAgent, *arguments: str, code: int = 0) -> Result:
        monkeypatch.setenv("AGENT_PORT", str(agent.client.base_url.port))
        return await anyio.to_thread.run_sync(lambda: run(*arguments, code=code))

    return invoke


# -- reload --------------------------------------------------------------------------------------


async def test_a_reload_says_what_changed(start_agent: StartAgent, beside: Any) -> None:
    async with start_agent() as agent:
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        agent.rewrite(entry, {**entry, "id": "second"}, labels={"a": "b"})
        said = (await beside(agent, "config", "reload")).output
        assert said == "added: second\nchanged: tiny\nsetting changed: labels\n"
        assert (await beside(agent, "config", "reload")).output == "nothing has changed\n"
        agent.rewrite(entry, labels={"a": "b"})
        values = json.loads((await beside(agent, "config", "reload", "--json")).output)
        assert values["removed"] == ["second"]


async def test_a_bad_file_is_said_by_reload_ps_and_doctor(
    start_agent: StartAgent, beside: Any
) -> None:
    problem = "agent.yaml, line 1: drain: is no field here"
    async with start_agent() as agent:
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        agent.rewrite(entry, drain=3)
        said = (await beside(agent, "config", "reload", code=1)).stderr
        assert said == f"iir-agent: {problem}. The agent keeps its present configuration.\n"
        workers = await beside(agent, "ps")
        assert "tiny" in workers.stdout
        assert workers.stderr == (
            f"iir-agent: the agent keeps an earlier configuration: {problem}\n"
        )
        assert json.loads((await beside(agent, "ps", "--json")).stdout)[0]["model"] == "tiny"
        findings = json.loads((await beside(agent, "doctor", "--json", code=1)).stdout)
        assert {"agent", "lease"} <= {found["check"] for found in findings}
        assert any(
            found["level"] == "problem" and problem in found["message"] for found in findings
        )
        agent.agent.drain()
        assert problem in (await beside(agent, "ps")).stderr
        agent.rewrite(entry)
        await beside(agent, "config", "reload")
        assert (await beside(agent, "ps")).stderr == ""


def test_without_an_agent_there_is_nothing_to_reload(run: Run) -> None:
    assert "no agent runs here" in run("config", "reload", code=1).stderr


# -- check ---------------------------------------------------------------------------------------


FILE = """\
known_models: false
memory_budget: 1 GiB
models:
  - {id: fits, engine: simulated, memory: 800 MiB}
  - {id: fits-too, engine: simulated, memory: 800 MiB}
  - {id: huge, engine: simulated, memory: 2 GiB}
  - {id: odd, engine: simulated, options: {speed: 3}}
  - {id: image, engine: vllm_docker, memory: 9 MiB, options: {repo: a/b, image: "mine:1"}}
  - {id: absent, source: "hf:a/b:c.gguf", size_bytes: 5000000}
"""


def test_check_warns_of_what_can_not_work_here(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(FILE)
    result = json.loads(run("config", "check", str(path), "--json").output)
    assert (result["file"], result["is_good"]) == ("other.yaml", True)
    assert result["models"][0] == {
        "id": "fits",
        "aliases": [],
        "engine": "simulated",
        "chosen": "simulated",
        "why": "as configured",
    }
    warned = {warning["model"]: warning for warning in result["warnings"]}
    assert set(warned) == {"huge", "odd", "image", "absent"}, "two that share are fine"
    assert warned["absent"]["fix"] == "iir-agent pull absent"
    assert "2048 MiB; the budget for all models is 1024 MiB" in warned["huge"]["message"]
    assert warned["odd"]["message"] == "engine simulated has no option speed"
    assert warned["image"]["message"] == "the image mine:1 is not allowed"
    text = run("config", "check", str(path)).output
    assert "  fits  (engine simulated)\n" in text
    assert (
        "warning: model absent: its weights are not on this host (5.0 MB) (iir-agent pull absent)"
        in text
    )


def test_check_names_file_line_field_and_rule(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("models:\n  - id: x\n    engine: simulated\n    contxt: 3\n")
    assert json.loads(run("config", "check", str(path), "--json", code=1).output) == {
        "file": "other.yaml",
        "is_good": False,
        "error": "other.yaml, line 4: models[0].contxt: is no field here",
        "line": 4,
        "field": "models[0].contxt",
        "rule": "is no field here",
    }
    assert "other.yaml, line 4" in run("config", "check", str(path), code=1).stderr


# -- schema --------------------------------------------------------------------------------------


KEYWORDS = {
    *("type", "anyOf", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "minItems"),
    *("items", "required", "properties", "additionalProperties"),
}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Judge a value by what our schema uses of JSON schema."""
    schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]]} if "$ref" in schema else schema
    kinds: dict[str, type | tuple[type, ...]] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list,
        "object": dict, "null": type(None),
    }  # fmt: skip
    judged: dict[str, Callable[[Any], bool]] = {
        "type": lambda kind: isinstance(value, kinds[kind])
        and (kind == "boolean" or not isinstance(value, bool)),
        "anyOf": lambda inner: any(accepts(one, value, root) for one in inner),
        "enum": lambda known: value in known,
    }
    if isinstance(value, str):
        judged["pattern"] = lambda text: bool(re.search(text, value))
    elif isinstance(value, int | float):
        judged["minimum"] = lambda least: value >= least
        judged["maximum"] = lambda most: value <= most
        judged["exclusiveMinimum"] = lambda least: value > least
    elif isinstance(value, list):
        judged["minItems"] = lambda least: len(value) >= least
        judged["items"] = lambda inner: all(accepts(inner, item, root) for item in value)
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        judged["required"] = lambda names: all(name in value for name in names)
        judged["properties"] = lambda _: all(
            accepts(known[name], item, root) for name, item in value.items() if name in known
        )
        judged["additionalProperties"] = lambda inner: (
            set(value) <= set(known)
            if inner is False
            else all(accepts(inner, item, root) for item in value.values())
        )
    about = {"title", "description", "default", "$defs", "$schema"}
    assert schema.keys() <= about | KEYWORDS, "this test would not know what that means"
    return all(judged[name](rule) for name, rule in schema.items() if name in judged)


def test_the_schema_takes_files_as_people_write_them(run: Run) -> None:
    schema = json.loads(run("config", "schema").output)
    assert schema == json_schema()
    good = """
memory_budget: 24 GiB
min_residency_s: ${env.S}
labels: {room: attic}
models:
  - {id: a, source: "hf:a/b:c.gguf", context: 8192, options: {threads: 4, embeddings: false}}
  - {id: b, source: {from: ./b.gguf}, context: "${env.CONTEXT}", memory: 6 GiB, pin: true, ttl: 0.5}
  - {id: c, source: [./b.gguf, {from: "package:x==1", sha256: ab}], engine: llama_cpp}
  - {id: d, url: "http://127.0.0.1:1", apis: [chat], aliases: [e]}
"""
    assert accepts(schema, yaml.safe_load(good), schema)
    for bad in [
        "modles: []",
        "models: [{engine: simulated}]",
        "models: [{id: a, contxt: 1}]",
        "models: [{id: a, engine: warp}]",
        "models: [{id: a, context: many}]",
        "models: [{id: a, context: 0}]",
        "models: [{id: a, memory: 6}]",
        "models: [{id: a, apis: []}]",
        "drain_s: -1",
    ]:
        assert not accepts(schema, yaml.safe_load(bad), schema), bad


def test_every_field_is_in_the_schema_with_what_it_means() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(AgentConfig.model_fields)
    entry = schema["$defs"]["ModelConfig"]["properties"]
    assert set(entry) == set(ModelConfig.model_fields)
    assert all(field["description"] for field in entry.values())
    engines = entry["engine"]["anyOf"][0]["enum"]
    assert engines == ["auto", *ENGINES]
