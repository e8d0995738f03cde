"""The log of a session holds no key, no prompt, no answer and no path of the host."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from router.domain import Scope
from shared.kit.logs import configure_logs
from shared.testing.raw_client import connected, render_request
from tests.router.harness import StartRouter
from tests.router.scenes import (
    CHAT,
    bearer,
    chat,
    error_event_of,
    key,
    one_engine,
    settled,
    usage_of,
)

PROMPT = "my private prompt 4711"
ANSWER = "simulated"


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level="debug", json=True, stream=stream)
    return stream


async def test_a_sessions_log(
    start_router: StartRouter, log: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", "sk-provider-secret")
    async with one_engine(
        start_router, router_catalog_poll_s=0.02, openai_base_url="http://127.0.0.1:9"
    ) as scene:
        keys = [scene.router.write(key()), scene.router.write(key(Scope.ADMIN))]
        await scene.router.catch_up()
        headers = bearer(keys[0])
        message = [{"role": "user", "content": PROMPT}]
        for stream in (True, False):
            body = {"model": "tiny", "messages": message, "stream": stream, "user": PROMPT}
            for fault in ("", "cut:after=2", "error_event:after=2", "status:code=500", "garbage"):
                if fault and (stream or "after" not in fault):
                    scene.engine.script.add(fault)
                await scene.client.post(CHAT, json=body, headers=headers)
        await scene.client.post(CHAT, json={**body, "model": "gpt-4.1"}, headers=headers)
        await scene.client.post(CHAT, content=PROMPT.encode(), headers=headers)
        await scene.client.post(f"{CHAT}?q={PROMPT}", json=body, headers=headers)
        await scene.client.get("/metrics", headers=bearer(keys[1]))
        for odd in ("Bearer sk-iir-" + "x" * 40, "Bearer other-secret-key"):
            await scene.client.post(CHAT, json=body, headers={"authorization": odd})
        await scene.client.get("/a%0a%7b%22event%22:%22forged%22%7d", headers=headers)
        await scene.client.get("/x", headers={"x-request-id": 'forged","event":"x'})
        scene.engine.script.add("stall")
        request = render_request("POST", CHAT, body, {"host": "localhost", **headers})
        async with connected(scene.router.base_url) as (_, writer):
            seen = len(scene.engine.requests)
            writer.write(request)
            await scene.engine.journal.wait_for(lambda: len(scene.engine.requests) > seen)
        await settled(scene.router)

        def broken(*_: object) -> None:
            raise RuntimeError(f"{PROMPT} {keys[0]} {tmp_path}")

        scene.router.router.fleet.resolve = broken  # type: ignore[method-assign,assignment] # a defect
        await scene.client.post(CHAT, json=body, headers=headers)
        path = Path(scene.router.settings.store_url.removeprefix("sqlite:///"))
        for companion in path.parent.glob(f"{path.name}*"):
            companion.unlink()
        await scene.router.catch_up()
        await scene.router.catch_up()

    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("registry_unreadable") == 1
    assert "internal_error" in events
    assert "forged" not in events
    requests = [line for line in lines if line["event"] == "request"]
    assert {"request_id", "method", "path", "status", "duration_ms"} <= set(requests[0])
    assert [line for line in requests if line.get("outcome") == "abandoned"]
    assert all("?" not in line["path"] for line in requests)
    secrets = [PROMPT, "private", ANSWER + " ", *keys, "provider-secret", "other-secret"]
    secrets += [one[7:15] for one in keys]
    secrets += [str(tmp_path), str(Path(__file__).parents[2]), os.sep + "lib" + os.sep]
    for secret in secrets:
        assert secret not in text, secret


FAILURES = {
    # sent after the 200, since the client was kept waiting
    "status:code=500;slow_headers:ms=120": (500, "upstream_error"),
    "cut:after=2": (200, "upstream_interrupted"),
    "error_event:after=2": (200, "upstream_error"),
}


@pytest.mark.parametrize("fault", FAILURES)
async def test_a_stream_that_failed_behind_its_200_counts_as_a_failure(
    start_router: StartRouter, log: io.StringIO, fault: str
) -> None:
    async with one_engine(
        start_router, router_keep_alive_s=0.05, router_public_routes="metrics"
    ) as scene:
        scene.engine.script.add(fault)
        answer = await scene.client.post(CHAT, json=chat(stream=True))
        assert answer.status_code == 200
        error = error_event_of(answer.content)
        rows = await usage_of(scene.router)
        metrics = (await scene.client.get("/metrics")).text
    status, label = FAILURES[fault]
    assert [(row["status"], row["error"]) for row in rows] == [(status, error["code"])]
    assert f'iir_attempts_total{{endpoint="engine",outcome="{label}"}} 1.0' in metrics
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [line for line in lines if line["event"] == "request" and line["path"] == CHAT]
    assert [(line["status"], line.get("error")) for line in told] == [(200, error["code"])]
