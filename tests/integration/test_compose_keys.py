"""The commands of docs/docker.md: keys, the agent's file, and the router's image by itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.snippets import snippets
from tests.integration.compose_stack import (
    BUILD_LIMIT_S,
    ROUTER_IMAGE,
    Compose,
    composed,
    docker,
    require_compose,
)
from tests.integration.stack import ROOT, output_of, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    with composed(AGENT_PULL="") as found:
        found.run("up", "--detach", "--build", "--wait")
        yield found


def status(address: str, key: str) -> int:
    headers = {"authorization": f"Bearer {key.strip()}"}
    url = f"http://{address}/v1/models"
    return httpx.get(url, headers=headers, trust_env=False, timeout=10).status_code


def made(said: str) -> str:
    """Return the key that `iir keys create` has shown."""
    (key,) = [word for word in said.split() if word.startswith("sk-iir-")]
    return key


def test_keys_are_made_and_revoked_and_the_first_is_not_made_anew(compose: Compose) -> None:
    address = compose.run("port", "router", "8000")
    first = compose.inside("router", "cat", "/data/api-key")
    assert status(address, first) == 200
    laptop = made(compose.inside("router", "iir", "keys", "create", "--name", "laptop"))
    ops = compose.inside("router", "iir", "keys", "create", "--name", "ops", "--scope", "admin")
    compose.inside("router", "iir", "keys", "revoke", "first")
    until(lambda: status(address, first) == 401, 5, "the first key is refused")
    assert status(address, laptop) == 200
    assert made(ops) not in {first, laptop}
    compose.run("restart", "router")
    # another one, as the port was left to the engine
    address = compose.run("port", "router", "8000")
    until(lambda: is_up(address), 30, "the router is back")
    assert compose.inside("router", "cat", "/data/api-key") == first
    assert (status(address, first), status(address, laptop)) == (401, 200)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/health", trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False


def documented(compose: Compose, words: str, folder: Path) -> None:
    """Run the block of the page that has these words, in a folder."""
    page = ROOT / "docs/docker.md"
    (block,) = [one for one in snippets(page, page.read_text()) if words in one.text]
    env = {**compose.env, "COMPOSE_FILE": str(ROOT / "docker-compose.yml")}
    output_of(["bash", "-e", "-c", block.text], limit_s=120, folder=folder, env=env)


def test_a_backup_brings_the_registry_back(compose: Compose, tmp_path: Path) -> None:
    kept = made(compose.inside("router", "iir", "keys", "create", "--name", "kept"))
    documented(compose, "> backup.db", tmp_path)
    compose.inside("router", "iir", "keys", "revoke", "kept")
    later = made(compose.inside("router", "iir", "keys", "create", "--name", "later"))
    address = compose.run("port", "router", "8000")
    until(lambda: (status(address, kept), status(address, later)) == (401, 200), 5, "known")
    documented(compose, "< backup.db", tmp_path)
    address = compose.run("port", "router", "8000")
    assert (status(address, kept), status(address, later)) == (200, 401)


def test_the_agent_takes_a_file_and_lists_what_it_has(compose: Compose) -> None:
    assert "smollm2-135m" in compose.inside("agent", "iir-agent", "ls")
    models = [{"id": "mine", "engine": "simulated"}]
    text = json.dumps({"known_models": False, "models": models})
    compose.inside("agent", "sh", "-c", "cat > /data/agent/agent.yaml", says=text)

    def listed() -> list[str]:
        rows = json.loads(compose.inside("agent", "iir-agent", "ls", "--json"))
        return [row["id"] for row in rows]

    until(lambda: listed() == ["mine"], 10, "the running agent follows its file")


def test_the_routers_image_by_itself() -> None:
    require_compose()
    words = [
        "docker",
        "build",
        "--quiet",
        "--file",
        "router/Dockerfile",
        "--tag",
        ROUTER_IMAGE,
        ".",
    ]
    output_of(words, limit_s=BUILD_LIMIT_S, folder=ROOT)
    name = f"iir-test-{uuid.uuid4().hex[:8]}"
    confined = ("--read-only", "--tmpfs", "/tmp")
    try:
        docker(
            *("run", "--detach", "--name", name, "--publish", "127.0.0.1::8000"),
            *("--volume", f"{name}:/data", *confined, ROUTER_IMAGE),
        )
        address = docker("port", name, "8000/tcp")
        until(lambda: is_up(address), 30, "it serves")
        key = docker("exec", name, "cat", "/data/api-key")
        assert status(address, key) == 200
        assert status(address, "sk-iir-nothing") == 401
        docker("stop", "--time", "40", name)
        assert json.loads(docker("inspect", name))[0]["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", name)
        docker("volume", "rm", "--force", name)
