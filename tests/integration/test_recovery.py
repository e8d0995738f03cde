"""Whatever is killed comes back, serves, and leaves nothing behind."""

from __future__ import annotations

import json

import httpx
import psutil
import pytest

from tests.integration.stack import MESSAGES, MODEL, QUESTION, Stack, until

pytestmark = pytest.mark.integration
WORKER_BACK_S = 20.0  # its first pause is 10 s ± 20 %
BACK_S = 15.0


def test_a_worker_killed_under_a_stream_ends_it_with_an_error_and_comes_back(stack: Stack) -> None:
    worker = stack.worker()
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "ignore_eos": True}
    text = ""
    url = f"{stack.base_url}/chat/completions"
    with httpx.stream("POST", url, json={**body, "max_tokens": 2000}, timeout=60) as response:
        for piece in response.iter_text():
            if not text:
                worker.kill()
            text += piece
    events = [event for event in text.split("\n\n") if event]
    assert len(events) > 1
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"]
    answer = stack.ask()
    assert answer.status_code == 503, answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    stack.until_served(WORKER_BACK_S)
    assert stack.worker().pid != worker.pid
    assert is_gone(worker)


def test_the_worker_of_a_killed_agent_serves_the_next_one(stack: Stack) -> None:
    worker = stack.worker()
    stack.agent.kill()
    assert worker.is_running()
    answer = stack.ask()
    assert answer.status_code in {502, 503}
    stack.agent.start()
    stack.until_served(BACK_S)
    assert stack.worker() == worker
    workers = [found for found in stack.processes() if "llama" in " ".join(found.cmdline())]
    assert [found.pid for found in workers] == [worker.pid]
    worker.kill()
    until(lambda: stack.ask().status_code == 503, 2, "the agent notices")
    stack.until_served(WORKER_BACK_S)
    assert stack.worker().pid != worker.pid


def test_a_killed_router_serves_as_soon_as_it_is_back(stack: Stack) -> None:
    worker = stack.worker()
    stack.router.kill()
    own = {"prompt": QUESTION, "temperature": 0}
    assert httpx.post(f"{stack.agent.url}/infer", json=own, timeout=60).status_code == 200
    stack.router.start()
    assert stack.until_served(BACK_S) < 3
    assert stack.worker().pid == worker.pid  # nobody needed another one
    until(lambda: lease(stack) == "held", BACK_S, "the agent holds its lease")


def test_both_killed_both_back(stack: Stack) -> None:
    worker = stack.worker()
    stack.agent.kill()
    stack.router.kill()
    stack.agent.start()  # the router comes later
    stack.router.start()
    stack.until_served(BACK_S)
    assert stack.worker() == worker
    assert stack.agent.terminate() < 5
    assert is_gone(worker)


def test_sigterm_ends_both_within_5_s_and_leaves_no_process_and_no_secret(stack: Stack) -> None:
    stack.ask(stream=True)
    stack.ask(model="nobody")
    httpx.post(f"{stack.agent.url}/infer", json={"prompt": QUESTION}, timeout=60)
    url = f"{stack.base_url}/chat/completions"
    httpx.post(url, content=json.dumps({"model": QUESTION})[:-1])
    httpx.post(url, json={"model": "default"}, headers={"authorization": "Bearer sk-of-a-user"})
    worker = stack.worker()
    assert stack.agent.terminate() < 5
    assert is_gone(worker)
    answer = stack.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "agent_unavailable")
    assert stack.router.terminate() < 5
    assert stack.processes() == []
    credential = stack.credential_path.read_text().strip()
    secrets = [
        credential,
        "sk-of-a-user",
        "capital of France",
        str(stack.home),
        str((stack.home / "models").resolve()),
    ]
    texts = stack.texts()
    assert {"router.out", "local_agent.out"} < set(texts)
    for name, text in texts.items():
        found = [secret for secret in secrets if secret in text]
        assert found == [], name
        assert "Traceback" not in text, name


def test_sigterm_with_an_endless_stream_waits_no_longer_than_it_may(stack: Stack) -> None:
    stack.agent.terminate()
    stack.agent._env["AGENT_DRAIN_S"] = "1"
    stack.agent.start()
    stack.until_served(BACK_S)
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "ignore_eos": True}
    url = f"{stack.agent.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**body, "max_tokens": 4000}, timeout=60) as response:
        pieces = response.iter_bytes()
        next(pieces)
        worker = stack.worker()
        assert stack.agent.terminate() < 5
    assert is_gone(worker)


def is_gone(process: psutil.Process) -> bool:
    """Tell whether it ended; where nobody reaps an orphan, a zombie is left of it."""
    try:
        status: str = process.status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE


def lease(stack: Stack) -> str:
    status: str = httpx.get(f"{stack.agent.url}/readyz", trust_env=False).json()["lease"]
    return status
