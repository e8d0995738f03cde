"""Slots, queue, metrics and the journal of the simulated engine."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.load import Slots, Tally, render_metrics
from shared.testing.personas import LLAMACPP, VLLM
from shared.testing.raw_client import connected, render_request

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "one two"}]}
STALL = {"x-sim-fault": "stall"}


def gauges(text: str) -> dict[str, float]:
    return {
        sample.name + sample.labels.get("finished_reason", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_over_the_slots_wait_and_leave_the_queue() -> None:
    engine = SimulatedEngine(EngineOptions(slots=1))
    raw = render_request("POST", PATH, ASK, STALL)
    async with running(engine) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        async with connected(base_url) as (_, first):
            first.write(raw)
            await engine.journal.wait_for(lambda: engine.slots.running == 1)
            async with connected(base_url) as (_, second):
                second.write(raw)
                await engine.journal.wait_for(lambda: engine.slots.waiting == 1)
                found = gauges((await client.get("/metrics")).text)
                assert found["vllm:num_requests_running"] == 1
                assert found["vllm:num_requests_waiting"] == 1
                assert found["vllm:kv_cache_usage_perc"] == 1
            await engine.journal.wait_for(lambda: engine.slots.waiting == 0)
            assert engine.slots.running == 1
            waiting = asyncio.create_task(client.post(PATH, json=ASK))
            await engine.journal.wait_for(lambda: engine.slots.waiting == 1)
        assert (await waiting).status_code == 200
    assert (engine.slots.running, engine.slots.waiting) == (0, 0)
    assert [seen.aborted for seen in engine.requests if seen.path == PATH] == [True, True, False]


async def test_a_turn_that_comes_together_with_a_cancel_is_passed_on() -> None:
    slots = Slots(1)

    async def work(done: asyncio.Event) -> None:
        async with slots.slot():
            await done.wait()

    events = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(work(event)) for event in events]
    await asyncio.sleep(0)
    events[0].set()
    await asyncio.sleep(0)
    assert slots.waiting == 1
    tasks[1].cancel()
    events[2].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (slots.running, slots.waiting) == (0, 0)
    assert not tasks[2].cancelled()


async def test_tokens_and_ends_are_counted() -> None:
    engine = SimulatedEngine(EngineOptions(tokens=5))
    async with running(engine) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        await client.post(PATH, json=ASK)
        await client.post(PATH, json={**ASK, "max_tokens": 2, "stream": True})
        await client.post(PATH, json=ASK, headers={"x-sim-fault": "status"})
        await client.post(PATH, json={})
        text = (await client.get("/metrics")).text
    found = gauges(text)
    assert text.startswith("# simulated engine")
    assert found["vllm:prompt_tokens_total"] == 6
    assert found["vllm:generation_tokens_total"] == 7
    assert found["vllm:request_success_totalstop"] == 1
    assert found["vllm:request_success_totallength"] == 1
    assert found["vllm:request_success_totalerror"] == 1


@pytest.mark.parametrize("persona", [VLLM, LLAMACPP])
def test_metrics_parse_whatever_the_model_is_called(persona: object) -> None:
    text = render_metrics(persona, 'a"b\\c\nd', Slots(2), Tally())  # type: ignore[arg-type]
    families = list(text_string_to_metric_families(text.decode()))
    names = {sample.labels.get("model_name") for family in families for sample in family.samples}
    assert names == ({'a"b\\c\nd'} if persona is VLLM else {None})


async def test_the_journal_shows_what_went_upstream() -> None:
    engine = SimulatedEngine()
    async with running(engine) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        await client.post(PATH, json=ASK, headers={"x-sim-fault": "no_done"} | {"x-a": "b"})
        await client.post(PATH, json={**ASK, "stream": True})
        rows = (await client.get("/sim/requests")).json()
        assert [row["status"] for row in rows] == [400, 200]
        assert ["x-a", "b"] in rows[0]["headers"]
        assert rows[0]["faults"] == ["no_done"]
        assert rows[1]["body"] == {**ASK, "stream": True}
        assert base64.b64decode(rows[1]["raw_base64"]).startswith(b"{")
        assert rows[1]["events"] == 7
        assert rows[1]["started_s"] <= rows[1]["first_byte_s"] <= rows[1]["ended_s"]
        assert not rows[1]["aborted"]
        engine.script.add("cut")
        assert (await client.post("/sim/reset")).json() == {}
        assert (await client.get("/sim/requests")).json() == []
        assert engine.script.pending() == ()


async def test_waiting_for_what_never_comes_ends() -> None:
    engine = SimulatedEngine()
    with pytest.raises(TimeoutError, match="not seen within"):
        await engine.journal.wait_for(lambda: False, timeout_s=0.01)
