"""The images and docker-compose.yml on a real engine, as a newcomer starts them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from shared import __version__
from shared.kit.clock import monotonic
from tests.integration.compose_stack import (
    AGENT_IMAGE,
    ROUTER_IMAGE,
    Compose,
    composed,
    docker,
)
from tests.integration.stack import ANSWER, MESSAGES, QUESTION, ROOT, until
from tests.scripts.test_container_files import locked

pytestmark = pytest.mark.integration

BASE_IMAGE = "python:3.12-slim"
MIB = 2**20
BACK_S = 60.0  # with the agent's first pause and a load of the model
STREAMS = 3  # so many the model answers at once


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    with composed() as found:
        started = monotonic()
        found.up()
        print(f"first make docker-dev: {monotonic() - started:.1f} s")  # noqa: T201
        yield found


def test_the_printed_line_answers(compose: Compose) -> None:
    (line,) = [line for line in compose.said.splitlines() if line.startswith("curl ")]
    done = subprocess.run(
        ["bash", "-c", f"{line} --noproxy '*'"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ANSWER in done.stdout, done.stdout + done.stderr


def test_a_stream_passes_through(compose: Compose) -> None:
    body = {"model": "default", "messages": MESSAGES, "temperature": 0, "stream": True}
    url = f"{compose.url}/v1/chat/completions"
    with httpx.stream(
        "POST", url, json=body, headers=compose.headers, trust_env=False, timeout=60
    ) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER
    assert len(events) > 3


def test_without_a_key_nobody_gets_in(compose: Compose) -> None:
    answer = httpx.get(f"{compose.url}/v1/models", trust_env=False)
    assert answer.status_code == 401
    assert httpx.get(f"{compose.url}/metrics", trust_env=False).status_code == 200


@pytest.mark.parametrize("service", ["router", "agent"])
def test_a_container_is_confined(compose: Compose, service: str) -> None:
    found = compose.state(service)
    host = found["HostConfig"]
    assert found["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Privileged"] is False
    published = [one for ports in host["PortBindings"].values() for one in ports or []]
    assert {one["HostIp"] for one in published} == ({"127.0.0.1"} if service == "router" else set())
    looks = (
        "touch /opt/iir/x 2>&1; id -u; find / -xdev -perm -4000 -user 0 -name 'iir*'; ls /licenses"
    )
    said = compose.inside(service, "sh", "-c", looks)
    assert "Read-only file system" in said
    assert said.splitlines()[1:] == ["10001", "LICENSE"]
    assert found["State"]["Health"]["Status"] == "healthy"


@pytest.mark.parametrize(("image", "most_mib"), [(ROUTER_IMAGE, 150), (AGENT_IMAGE, 350)])
def test_an_image_is_small_and_holds_neither_weights_nor_tools(
    compose: Compose, image: str, most_mib: int
) -> None:
    sizes = [int(docker("image", "inspect", "-f", "{{.Size}}", one)) for one in (image, BASE_IMAGE)]
    added = (sizes[0] - sizes[1]) / MIB
    print(f"{image}: {added:.0f} MiB on top of its base")  # noqa: T201
    assert added <= most_mib
    look = (
        "find / -xdev -name '*.gguf' -size +1M; ls /src 2>/dev/null; "
        "for tool in gcc cc make uv; do command -v $tool; done; "
        "ls /opt/iir/lib/python3.12/site-packages | grep -i '^setuptools\\|^wheel'; true"
    )
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", look) == ""
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "PIP_INDEX_URL=" not in history


LOOK_AT_PACKAGES = """
import json, re
from importlib.metadata import distributions
licence = re.compile("licen[cs]e|copying|notice", re.IGNORECASE)
print(json.dumps({
    re.sub("[-_.]+", "-", one.metadata["Name"]).lower(): [
        one.version,
        any(licence.search(file.name) and file.locate().stat().st_size for file in one.files),
    ]
    for one in distributions()
}))
"""


@pytest.mark.parametrize(("image", "lock"), [(ROUTER_IMAGE, "router"), (AGENT_IMAGE, "agent")])
def test_an_image_holds_what_its_sbom_says_each_with_its_licence(
    compose: Compose, image: str, lock: str
) -> None:
    found = docker("run", "--rm", "--entrypoint", "python", image, "-c", LOOK_AT_PACKAGES)
    packages = json.loads(found)
    assert packages.pop("intelligent-inference-router") == [__version__, True]
    # `make sbom` is written from the lock
    assert packages == {name: [version, True] for name, (version, _) in locked(lock).items()}
    own = docker("run", "--rm", "--entrypoint", "cat", image, "/licenses/LICENSE")
    assert own == (ROOT / "LICENSE").read_text().strip()


@pytest.mark.parametrize("service", ["router", "agent"])
def test_what_is_killed_comes_back_and_serves(compose: Compose, service: str) -> None:
    before = compose.state(service)
    compose.crash(service)
    since = before["State"]["StartedAt"]
    until(lambda: compose.state(service)["State"]["StartedAt"] != since, 30, "it is started again")
    took_s = compose.until_served(BACK_S)
    print(f"{service} killed, serves again after {took_s:.1f} s")  # noqa: T201
    after = compose.state(service)
    # the engine has started it again, once
    assert (after["Id"], after["RestartCount"]) == (before["Id"], before["RestartCount"] + 1)


def stream(compose: Compose, begun: threading.Barrier) -> list[str]:
    """Read a stream of some length to its end; return its lines."""
    body = {"model": "default", "messages": MESSAGES, "stream": True, "ignore_eos": True}
    url = f"{compose.url}/v1/chat/completions"
    lines: list[str] = []
    with httpx.stream(
        "POST",
        url,
        json={**body, "max_tokens": 120},
        headers=compose.headers,
        trust_env=False,
        timeout=120,
    ) as answer:
        for line in answer.iter_lines():
            if not lines:
                begun.wait(60)
            if line:
                lines.append(line)
    return lines


def test_a_restart_of_the_router_lets_streams_end(compose: Compose) -> None:
    before = compose.state("router")["State"]["StartedAt"]
    begun = threading.Barrier(STREAMS + 1)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, compose, begun) for _ in range(STREAMS)]
        begun.wait(60)
        started = monotonic()
        compose.run("restart", "--no-deps", "router")
        print(f"restart under {STREAMS} streams: {monotonic() - started:.1f} s")  # noqa: T201
        for one in streams:
            lines = one.result(120)
            assert lines[-1] == "data: [DONE]", lines[-3:]
            assert not [line for line in lines if '"error"' in line]
            assert len(lines) > 100
    assert compose.state("router")["State"]["StartedAt"] != before
    compose.until_served(BACK_S)


def test_data_outlives_down_and_up_and_down_leaves_nothing_else(compose: Compose) -> None:
    weights = ("sh", "-c", "ls -l --time-style=full-iso /data/models/smollm2-135m/*.gguf")
    compose.inside("router", "iir", "keys", "create", "--name", "kept")
    before = (
        compose.key,
        compose.inside("agent", *weights),
        json.loads(compose.inside("router", "iir", "agents", "list", "--json"))[0]["agent_id"],
    )
    compose.make("docker-down")
    left = compose.left()
    assert left["containers"] == left["networks"] == []
    assert len(left["volumes"]) == 4
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{compose.url}/health", trust_env=False)
    started = monotonic()
    compose.up()
    print(f"a later make docker-dev: {monotonic() - started:.1f} s")  # noqa: T201
    assert compose.is_served()
    after = (
        compose.key,
        compose.inside("agent", *weights),
        json.loads(compose.inside("router", "iir", "agents", "list", "--json"))[0]["agent_id"],
    )
    assert after == before
    assert "kept" in compose.inside("router", "iir", "keys", "list")


@pytest.mark.parametrize("volume", ["agent", "router"])
def test_a_volume_that_is_lost_is_mended_by_the_next_start(compose: Compose, volume: str) -> None:
    compose.make("docker-down")
    docker("volume", "rm", f"{compose.project}_{volume}")
    compose.up()
    assert compose.is_served()


def test_the_simulated_engine_alone_answers_the_same_each_time(compose: Compose) -> None:
    """Its profile is for the tests of other programs; the images are there by now."""
    body = {"model": "simulated", "messages": [{"role": "user", "content": QUESTION}]}
    answers = []
    for _ in range(2):
        with composed(SIM_PORT="0") as sim:
            sim.run("--profile", "sim", "up", "--detach", "--wait", "sim")
            assert sim.run("ps", "--services").split() == ["sim"]
            url = f"http://{sim.run('--profile', 'sim', 'port', 'sim', '8000')}/v1/chat/completions"
            answer = httpx.post(url, json=body, trust_env=False)
            answers.append(answer.json()["choices"][0]["message"]["content"])
    assert answers[0]
    assert answers[0] == answers[1]
