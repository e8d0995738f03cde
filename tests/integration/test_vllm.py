"""The real vLLM as a process and in a container, through agent and router.

vLLM takes a minute to start, so one stack serves all tests, which treat both workers badly at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from tests.integration import container_engine, vllm_environment
from tests.integration.stack import missing, until
from tests.integration.vllm_stack import (
    CONTAINER,
    HUNGRY,
    LOADED_S,
    MESSAGES,
    PROCESS,
    TOKEN,
    VllmStack,
    image,
)

pytestmark = pytest.mark.integration
BOTH = [PROCESS, CONTAINER]
GONE_S = 15.0
# of what vLLM 0.32 answers beside the inference routes; several change the engine for everybody
SIDE_ROUTES = """
/load /server_info /sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache /reset_mm_cache
/pause /resume /abort_requests /update_weights /scale_elastic_ep /tokenize /detokenize /ping
/invocations /kv_event_sources /weight_info /v1/load_lora_adapter /v1/unload_lora_adapter
/v1/chat/completions/batch /v1/chat/completions/render /v1/systemone /v1/../sleep /v1/%2e%2e/sleep
//sleep /v1//../sleep /v1/chat/completions/../../../sleep
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStack]:
    """Run both workers for all tests."""
    interpreter = vllm_environment.interpreter()
    if interpreter is None:
        missing("the real vLLM: python -m tests.integration.vllm_environment")
    engine = container_engine.connected(600)  # it copies gigabytes into an image
    stack = VllmStack(
        tmp_path_factory.mktemp("vllm"), engine, interpreter, image(engine, interpreter)
    )
    try:
        stack.start()
        for model in BOTH:
            loaded_s = stack.until_answered(model)
            print(f"{model}: answered after {loaded_s:.1f} s")  # noqa: T201
        yield stack
    finally:
        stack.close()
        engine.close()


@pytest.mark.parametrize("model", BOTH)
def test_both_ways_lead_to_the_same_answer(vllm: VllmStack, model: str) -> None:
    routed = vllm.chat(model)
    direct = vllm.chat(model, base=f"{vllm.agent.url}/v1")
    assert routed.status_code == direct.status_code == 200
    found = routed.json()
    text = found["choices"][0]["message"]["content"]
    assert len(text) == 8
    assert text.isprintable()
    assert text == direct.json()["choices"][0]["message"]["content"]
    assert found["model"] == model
    assert found["usage"]["completion_tokens"] == 8
    assert routed.headers["x-iir-zone"] == "local"


@pytest.mark.parametrize("model", BOTH)
def test_it_streams_with_usage_and_says_what_is_wrong(vllm: VllmStack, model: str) -> None:
    for base in (vllm.base_url, f"{vllm.agent.url}/v1"):
        with openai.OpenAI(base_url=base, api_key="sk-any", max_retries=0) as client:
            stream = client.chat.completions.create(
                model=model,
                messages=MESSAGES,
                temperature=0,
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
            )  # type: ignore[call-overload] # a plain dict is what users write
            chunks = list(stream)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert len(text) == 16
            assert chunks[-1].choices == []
            assert chunks[-1].usage.completion_tokens == 16
            assert {chunk.model for chunk in chunks} == {model}
            with pytest.raises(openai.NotFoundError) as unknown:
                client.chat.completions.create(model="nobody", messages=MESSAGES)  # type: ignore[arg-type]
            assert unknown.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as long:
                client.completions.create(model=model, prompt="word " * 1000, stream=True)
            assert str(vllm.home.parent) not in str(long.value.body)


def test_the_agent_answers_by_itself(vllm: VllmStack) -> None:
    assert vllm.chat(PROCESS, max_tokens=4).json()["usage"]["completion_tokens"] == 4
    own = {"prompt": "hello", "model": PROCESS, "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{vllm.agent.url}/infer", json=own, trust_env=False, timeout=60).json()
    assert (answer["model"], len(answer["text"])) == (PROCESS, 8)


def test_no_side_route_of_vllm_is_reachable(vllm: VllmStack) -> None:
    reached = []
    for base in (vllm.router.url, vllm.agent.url):
        for path in SIDE_ROUTES.split():
            for method in ("GET", "POST"):
                url = httpx.URL(base).copy_with(raw_path=path.encode())
                body = {"model": PROCESS, "level": 1, "prompt": "x"} if method == "POST" else None
                answer = httpx.request(method, url, json=body, trust_env=False, timeout=10)
                if answer.status_code not in {400, 404, 405}:
                    reached.append((base, method, path, answer.status_code))
        assert "vllm:" not in httpx.get(f"{base}/metrics", trust_env=False).text
        listed = httpx.get(f"{base}/v1/models", trust_env=False).text
        assert str(vllm.model_folder) not in listed
    assert reached == []
    assert vllm.answers(PROCESS)  # and nothing put it to sleep


def test_vllm_listens_on_loopback_only(vllm: VllmStack) -> None:
    listening = {
        connection.laddr.ip
        for process in vllm.group()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_container_that_runs_out_of_memory_says_so(vllm: VllmStack) -> None:
    vllm.load(HUNGRY)
    words = "out of memory: the container went over its limit of 1 GiB"
    until(lambda: words in (vllm.row(HUNGRY)["reason"] or ""), LOADED_S, words)
    vllm.run("local_agent", "unload", HUNGRY)
    until(lambda: len(vllm.containers()) == 1, GONE_S, "its container is gone")
    assert vllm.answers(CONTAINER)


def test_a_killed_server_and_a_stopped_container_come_back(vllm: VllmStack) -> None:
    group = vllm.group()
    assert len(group) > 1
    (container,) = vllm.containers()
    server = next(process for process in group if process.pid == vllm.row(PROCESS)["pid"])
    server.kill()
    gone_s = until(lambda: not any(map(is_alive, group)), GONE_S, "its EngineCore is gone")
    container.stop(timeout=5)
    report("killed API server, all gone", gone_s)
    for model in BOTH:
        report(f"{model} answers again, after", vllm.until_answered(model))
    assert [one.id for one in vllm.containers()] != [container.id]
    assert {process.pid for process in vllm.group()} == {p.pid for p in vllm.vllm_processes()}


def test_a_killed_engine_core_is_noticed_and_replaced(vllm: VllmStack) -> None:
    group = vllm.group()
    (container,) = vllm.containers()
    core = next(process for process in group if "EngineCore" in " ".join(process.cmdline()))
    core.kill()
    assert container.exec_run(["python", "-c", KILL_CORE]).exit_code == 0
    until(lambda: vllm.row(PROCESS)["state"] != "ready", GONE_S, "the agent notices")
    until(lambda: vllm.row(CONTAINER)["state"] != "ready", GONE_S, "the agent notices")
    until(lambda: not any(map(is_alive, group)), GONE_S, "the rest of it is gone")
    for model in BOTH:
        report(f"{model} answers again, after", vllm.until_answered(model))


def test_the_agent_after_a_killed_one_adopts_container_and_process(vllm: VllmStack) -> None:
    group = vllm.group()
    (container,) = vllm.containers()
    vllm.agent.kill()
    vllm.agent.start()
    report("adopted container answers, after", vllm.until_answered(CONTAINER))
    assert [one.id for one in vllm.containers()] == [container.id]
    report("adopted process answers, after", vllm.until_answered(PROCESS))
    assert set(vllm.group()) == set(group)
    assert {process.pid for process in group} == {p.pid for p in vllm.vllm_processes()}


def test_unload_lets_a_stream_finish_and_leaves_nothing(vllm: VllmStack) -> None:
    body = {
        "model": PROCESS,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 400,
        "stream": True,
    }
    url = f"{vllm.base_url}/chat/completions"
    with httpx.stream("POST", url, json=body, trust_env=False, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        first = next(lines)
        for model in BOTH:
            vllm.run("local_agent", "unload", model)
        received = [first, *lines]
    assert received[-1] == "data: [DONE]"
    texts = [json.loads(line[6:]) for line in received[:-1]]
    assert sum(len(t["choices"][0]["delta"].get("content") or "") for t in texts) == 400
    until(lambda: not vllm.vllm_processes(), GONE_S, "no process is left")
    until(lambda: not vllm.containers(), GONE_S, "no container is left")


def test_an_agent_that_is_told_to_stop_while_both_load_leaves_nothing(vllm: VllmStack) -> None:
    for model in BOTH:
        vllm.load(model)
    until(lambda: len(vllm.vllm_processes()) > 1, LOADED_S, "it has begun")
    until(vllm.containers, LOADED_S, "a container")
    time.sleep(1)  # into the middle of it
    report("stopped while loading, within", vllm.agent.terminate())
    assert vllm.vllm_processes() == []
    assert vllm.containers() == []
    for name, text in vllm.texts().items():
        assert TOKEN not in text, name
        assert MESSAGES[0]["content"] not in text, name
        assert str(vllm.model_folder) not in text, name


KILL_CORE = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"EngineCore" in path.read_bytes() and int(path.parent.name) != os.getpid():
        os.kill(int(path.parent.name), 9)
        sys.exit(0)
sys.exit(1)
"""


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def report(what: str, seconds: float) -> None:
    print(f"{what} {seconds:.1f} s")  # noqa: T201
