"""What docker-compose.yml is combined with: TLS in front, workers in containers beside the agent."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_agent.process import free_port
from tests.integration import container_engine
from tests.integration.compose_stack import Compose, composed, require_compose
from tests.integration.stack import MESSAGES, output_of, until
from tests.integration.test_docker_worker import IMAGE, context, vllm

pytestmark = pytest.mark.integration

CADDY = "iir-test/caddy"
# the images of others can't be pulled everywhere: the same program from Debian
CADDY_DOCKERFILE = """
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends caddy ca-certificates
"""
SOCKET = Path("/var/run/docker.sock")
TLS = "docker-compose.yml:docker-compose.tls.yml"
SIBLINGS = "docker-compose.yml:docker-compose.siblings.yml"


def says(client: httpx.Client, method: str, path: str, **more: Any) -> int | None:
    """Return the status of an answer; None while nobody takes the connection or has a certificate."""
    try:
        return client.request(method, path, **more).status_code
    except httpx.ConnectError:
        return None


def test_tls_in_front() -> None:
    require_compose()
    build = ["docker", "build", "--quiet", "--tag", CADDY, "-"]
    output_of(build, limit_s=300, says=CADDY_DOCKERFILE)
    port = str(free_port())
    with composed(COMPOSE_FILE=TLS, CADDY_IMAGE=CADDY, TLS_PORT=port, AGENT_PULL="") as stack:
        stack.run("--profile", "sim", "up", "--detach", "--build", "--wait")
        add = ("iir", "providers", "add", "sim", "--base-url", "http://sim:8000/v1")
        stack.inside("router", *add, "--zone", "local")
        stack.inside(
            "router",
            "iir",
            "models",
            "add",
            "m",
            "--provider",
            "sim",
            "--upstream-name",
            "simulated",
        )
        key = stack.inside("router", "cat", "/data/api-key")
        authority = "/data/caddy/pki/authorities/local/root.crt"
        until(lambda: "CERT" in stack.inside("tls", "sh", "-c", f"cat {authority}; true"), 30, "CA")
        trust = ssl.create_default_context(cadata=stack.inside("tls", "cat", authority))
        with httpx.Client(
            base_url=f"https://localhost:{port}",
            headers={"authorization": f"Bearer {key}"},
            verify=trust,
            trust_env=False,
            timeout=30,
        ) as client:
            until(lambda: says(client, "GET", "/readyz") == 200, 20, "ready through TLS")
            chat, body = "/v1/chat/completions", {"model": "m", "messages": MESSAGES}
            until(lambda: says(client, "POST", chat, json=body) == 200, 10, "served")
            streamed = client.post(chat, json={**body, "stream": True})
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert client.get("/metrics").status_code == 404
            assert client.get("/v1/models", headers={"authorization": "x"}).status_code == 401
        # another name is refused by Caddy itself; a connection of its own, for names count when one
        # is made
        url = f"https://localhost:{port}/readyz"
        with (
            httpx.Client(verify=trust, trust_env=False) as other,
            pytest.raises(httpx.ConnectError, match=r"(?i)alert"),
        ):
            other.get(url, extensions={"sni_hostname": "evil.example"})


@pytest.fixture
def siblings() -> Iterator[tuple[Compose, Any]]:
    require_compose()
    engine = container_engine.connected()
    engine.images.build(fileobj=context(), custom_context=True, tag=IMAGE, rm=True)
    gid = str(SOCKET.stat().st_gid)
    try:
        with composed(
            COMPOSE_FILE=SIBLINGS, DOCKER_GID=gid, AGENT_IMAGES=IMAGE, AGENT_PULL=""
        ) as stack:
            stack.run("up", "--detach", "--build", "--wait")
            yield stack, engine
    finally:
        engine.close()


def configure(stack: Compose, *models: dict[str, Any]) -> None:
    """Write the agent's file into its volume, and note the models as pulled."""
    config = json.dumps({"known_models": False, "models": models})
    stack.inside("agent", "sh", "-c", "cat > /data/agent/agent.yaml", says=config)
    note = (
        "from pathlib import Path; from local_agent.weights.store import WeightStore; "
        "from local_agent.domain import PulledImage; store = WeightStore(Path('/data/models')); "
    )
    for model in models:
        image, repo = model["options"]["image"], model["options"]["repo"]
        note += (
            f"store.record_pulled({model['id']!r}, PulledImage(image={image!r}, repo={repo!r}, "
            "size_bytes=0), '2026-01-01T00:00:00+00:00'); "
        )
    stack.inside("agent", "python", "-c", note)
    stack.inside("agent", "iir-agent", "config", "reload")


def test_workers_in_containers_beside_the_agent(siblings: tuple[Compose, Any]) -> None:
    stack, engine = siblings
    configure(stack, vllm("tiny"), vllm("odd", options={"image": "somebody/else:v1"}))
    key = stack.inside("router", "cat", "/data/api-key")
    url = f"http://{stack.run('port', 'router', '8000')}/v1/chat/completions"

    def answers() -> bool:
        answer = httpx.post(
            url,
            json={"model": "tiny", "messages": MESSAGES},
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code in {200, 404, 502, 503}, answer.text
        return answer.status_code == 200

    until(answers, 60, "the worker answers through router and agent", every_s=0.3)
    agent_id = stack.inside("agent", "cat", "/data/agent/id").strip()

    def workers() -> list[Any]:
        return container_engine.of_agent(engine, agent_id)

    (worker,) = workers()
    host = worker.attrs["HostConfig"]
    assert host["NetworkMode"] == f"{stack.project}-workers"
    assert not host["PortBindings"]
    assert list(worker.attrs["NetworkSettings"]["Networks"]) == [f"{stack.project}-workers"]
    assert "somebody/else:v1 is not allowed" in stack.inside("agent", "iir-agent", "ps", "--json")

    before = stack.state("agent")["State"]["StartedAt"]
    stack.crash("agent")
    until(lambda: stack.state("agent")["State"]["StartedAt"] != before, 30, "it is started again")
    until(answers, 60, "served again", every_s=0.3)
    assert [one.id for one in workers()] == [worker.id]  # taken over

    stack.crash("agent")  # and one that is killed leaves nothing either
    stack.make("docker-down")
    assert workers() == []


def test_without_the_socket_the_agent_says_what_is_missing() -> None:
    with composed(AGENT_PULL="") as stack:
        stack.run("up", "--detach", "--build", "--wait")
        # it ends with 1: the embedded model is not pulled here
        said = stack.inside("agent", "sh", "-c", "iir-agent doctor --json; test $? = 1")
        found = {one["check"]: one for one in json.loads(said)}
        assert "no container engine was found" in found["containers"]["message"]
