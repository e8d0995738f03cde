"""Everything around inference: models, health, metrics, control, and errors of every route."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from local_agent.domain import WorkerState
from tests.local_agent.harness import CHAT, MESSAGES, StartAgent, external

JSON = {"content-type": "application/json"}
NOT_PULLED = {"id": "org/big", "engine": "llama_cpp", "source": "hf:org/repo:big.gguf"}


def check_envelope(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-iir-error-origin"] in {"client", "agent", "upstream"}
    return error


async def test_every_error_comes_in_the_envelope(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        cases: list[tuple[str, str, dict[str, Any], int, str]] = [
            ("GET", "/", {}, 404, "not_found"),
            ("GET", "/v1", {}, 404, "not_found"),
            ("POST", "/v1/chat/completions/", {"json": {}}, 404, "not_found"),
            ("GET", "/v1/models/", {}, 404, "model_not_found"),
            ("GET", "/v1/models/no/body", {}, 404, "model_not_found"),
            ("POST", "/v1/responses/resp_1/cancel", {"json": {}}, 404, "not_found"),
            ("GET", "/v1/responses", {}, 405, "method_not_allowed"),
            ("POST", "/v1/responses", {"json": {"model": "tiny"}}, 404, "unsupported_api"),
            ("GET", "/docs", {}, 404, "not_found"),
            ("GET", "/openapi.json", {}, 404, "not_found"),
            ("GET", CHAT, {}, 405, "method_not_allowed"),
            ("PUT", "/infer", {}, 405, "method_not_allowed"),
            ("POST", "/v1/models", {"json": {}}, 405, "method_not_allowed"),
            ("DELETE", "/health", {}, 405, "method_not_allowed"),
            ("POST", CHAT, {"content": b"{}"}, 415, "unsupported_media_type"),
            ("POST", CHAT, {"data": {"a": "b"}}, 415, "unsupported_media_type"),
            ("POST", CHAT, {"json": {}, "headers": {"content-encoding": "gzip"}}, 415, "unsupported_media_type"),
            ("POST", CHAT, {"content": b"", "headers": JSON}, 400, "invalid_json"),
            ("POST", CHAT, {"content": b"{", "headers": JSON}, 400, "invalid_json"),
            ("POST", CHAT, {"content": b"[]", "headers": JSON}, 400, "invalid_json"),
            ("POST", CHAT, {"content": b'{"a":"\xff"}', "headers": JSON}, 400, "invalid_json"),
            ("POST", CHAT, {"content": b"[" * 100_000, "headers": JSON}, 400, "invalid_json"),
            ("POST", CHAT, {"json": {"messages": []}}, 400, "invalid_request"),
            ("POST", CHAT, {"json": {"model": 1}}, 400, "invalid_request"),
            ("POST", CHAT, {"json": {"model": ""}}, 400, "invalid_request"),
            ("POST", CHAT, {"json": {"model": "m" * 257}}, 400, "invalid_request"),
            ("POST", CHAT, {"json": {"model": "tiny", "stream": 1}}, 400, "invalid_request"),
            ("POST", CHAT, {"json": {"model": "../../etc/passwd"}}, 404, "model_not_found"),
            ("POST", "/internal/models/tiny/load", {"content": b"x" * 2**20 + b"y", "headers": JSON}, 413, "request_too_large"),
        ]  # fmt: skip
        for method, path, request, status, code in cases:
            answer = await agent.client.request(method, path, **request)
            error = check_envelope(answer, status, code)
            if status == 405:
                assert answer.headers["allow"], path
            assert "passwd" not in error["message"] or status == 404


async def test_a_request_id_is_kept_if_it_is_sane(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for given, is_kept in [
            ("abc-1.2:3", True),
            ("a" * 129, False),
            ("a b", False),
            ("", False),
        ]:
            answer = await agent.client.get("/nowhere", headers={"x-request-id": given})
            assert (answer.headers["x-request-id"] == given) is is_kept


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_over_32_mib_is_refused(start_agent: StartAgent, is_declared: bool) -> None:
    async def pieces() -> Any:
        for _ in range(33):
            yield b"x" * 2**20

    content: Any = b"x" * (32 * 2**20 + 1) if is_declared else pieces()
    async with start_agent() as agent:
        answer = await agent.client.post(CHAT, content=content, headers=JSON)
        check_envelope(answer, 413, "request_too_large")


async def test_models_are_listed_whether_loaded_or_not(start_agent: StartAgent) -> None:
    async with start_agent() as first, start_agent(
        external(first.worker_url, upstream_name="engine/tiny", aliases=["default", "t"]),
        NOT_PULLED,
        {"id": "sim", "engine": "simulated"},
    ) as agent:  # fmt: skip
        answer = await agent.client.get("/v1/models")
        listed = {model["id"]: model for model in answer.json()["data"]}
        assert answer.json()["object"] == "list"
        assert {name: model["status"] for name, model in listed.items()} == {
            "tiny": {"value": "loaded"},
            "org/big": {"value": "unloaded"},
            "sim": {"value": "unloaded"},
        }
        assert listed["tiny"]["aliases"] == ["default", "t"]
        assert listed["tiny"]["object"] == "model"
        assert listed["tiny"]["created"] > 1_600_000_000
        assert listed["org/big"]["is_pulled"] is False
        assert listed["org/big"]["pull_command"] == "iir-agent pull org/big"
        for name in ("org/big", "t", "tiny"):
            one = await agent.client.get(f"/v1/models/{name}")
            assert one.json() == listed["tiny" if name == "t" else name]


async def test_asking_for_weights_that_are_not_here_names_the_command(
    start_agent: StartAgent,
) -> None:
    async with start_agent(NOT_PULLED) as agent:
        for path, body in [
            (CHAT, {"model": "org/big", "messages": MESSAGES}),
            (CHAT, {"model": "org/big", "messages": MESSAGES, "stream": True}),
            ("/infer", {"model": "org/big", "prompt": "a"}),
        ]:
            answer = await agent.client.post(path, json=body)
            error = check_envelope(answer, 404, "model_not_pulled")
            assert error["message"].endswith("run: iir-agent pull org/big")
            assert "retry-after" not in answer.headers


async def test_the_mission_s_model_is_known_and_can_be_pulled(start_agent: StartAgent) -> None:
    async with start_agent(fields={"known_models": True}) as agent:
        listed = {m["id"]: m for m in (await agent.client.get("/v1/models")).json()["data"]}
        mission = listed["local_mistral-7b-instruct-q4"]
        assert mission["status"] == {"value": "unloaded"}
        assert listed["smollm2-135m"]["aliases"] == []  # the test's own model is the default here
        answer = await agent.client.post(CHAT, json={"model": mission["id"], "messages": []})
        error = check_envelope(answer, 404, "model_not_pulled")
        assert "iir-agent pull local_mistral-7b-instruct-q4" in error["message"]


async def test_health_readiness_and_metrics(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for path in ("/health", "/livez"):
            assert (await agent.client.get(path)).json() == {"status": "ok"}
        await agent.client.post(CHAT, json={"model": "tiny", "messages": MESSAGES})
        metrics = (await agent.client.get("/metrics")).text
        assert 'iir_agent_worker_ready{model="tiny"} 1.0' in metrics
        assert 'iir_agent_in_flight{model="tiny"} 0.0' in metrics
        ready = await agent.client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "lease": "no_credential", "config": "ok"}
        agent.agent.drain()
        ready = await agent.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["status"] != "ready"


async def test_workers_are_shown(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        (worker,) = (await agent.client.get("/internal/workers")).json()
        assert worker["since_s"] >= 0
        del worker["since_s"]
        assert worker == {
            "model": "tiny",
            "engine": "external",
            "state": "external",
            "pid": None,
            "in_flight": 0,
            "reason": None,
            "memory_mb": 0,
            "is_pinned": False,
            "ttl_s": None,
            "expected_load_s": 2.0,
            "running": 0,
            "waiting": 0,
            "max_queue": 64,
            "expected_wait_s": 0.0,
        }


async def test_reload_takes_a_good_file_and_keeps_the_old_for_a_bad_one(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        agent.rewrite(entry, {**entry, "id": "second"})
        answer = await agent.client.post("/internal/reload", json={})
        found = answer.json()
        assert (found["models"], found["added"]) == (["tiny", "second"], ["second"])
        await agent.until("second", WorkerState.EXTERNAL)
        body = {"model": "second", "messages": MESSAGES}
        assert (await agent.client.post(CHAT, json=body)).status_code == 200
        path = agent.home / "agent" / "agent.yaml"
        for bad, says in [
            ("models: [", "line 1"),
            (json.dumps({"models": [{"id": "x", "engine": "warp"}]}), "no such engine"),
            (json.dumps({"modles": []}), "modles"),
        ]:
            path.write_text(bad)
            answer = await agent.client.post("/internal/reload", json={})
            error = check_envelope(answer, 400, "invalid_request")
            assert "agent.yaml" in error["message"]
            assert says in error["message"]
            assert error["message"].endswith("The agent keeps its present configuration.")
            assert str(agent.home) not in error["message"]
            assert (await agent.client.post(CHAT, json=body)).status_code == 200
        agent.rewrite(entry)
        answer = await agent.client.post("/internal/reload", json={})
        assert (answer.json()["models"], answer.json()["removed"]) == (["tiny"], ["second"])
        answer = await agent.client.post(CHAT, json=body)
        check_envelope(answer, 404, "model_not_found")


async def test_an_error_links_to_what_its_code_means(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        answer = await agent.client.post(CHAT, json={"model": "unknown", "messages": MESSAGES})
        check_envelope(answer, 404, "model_not_found")
        page = await agent.client.get(answer.links["help"]["url"])
        assert page.status_code == 200
        assert page.text.startswith("model_not_found\n")
        assert "What to do:" in page.text
