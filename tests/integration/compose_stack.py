"""`make docker-dev` under a project name of the test's own, and what Docker says of it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from local_agent.process import free_port
from tests.integration.stack import (
    ANSWER,
    MESSAGES,
    missing,
    output_of,
    until,
)

TAG = "iir-test"
ROUTER_IMAGE, AGENT_IMAGE = f"iir-router:{TAG}", f"iir-agent:{TAG}"
BUILD_LIMIT_S = 900.0


def docker(*arguments: str, says: str = "", **env: str) -> str:
    """Run `docker` and return its output; `says` is its input."""
    return output_of(["docker", *arguments], limit_s=BUILD_LIMIT_S, env=env, says=says).strip()


def require_compose() -> None:
    """Skip, in CI fail, without an engine and `docker compose`."""
    for arguments in (("info",), ("compose", "version")):
        try:
            docker(*arguments)
        except (AssertionError, OSError):
            missing(f"docker {' '.join(arguments)} to work")


class Compose:
    """One project: its commands, its containers, and its router as a client sees it."""

    def __init__(self, **env: str) -> None:
        self.project = f"iir-test-{uuid.uuid4().hex[:8]}"
        self.env = {
            "COMPOSE_PROJECT_NAME": self.project,
            "IIR_TAG": TAG,
            "ROUTER_PORT": str(free_port()),
            "DOCKER_AGENT": "container",
            **env,
        }
        self.said = ""

    def make(self, target: str, **env: str) -> str:
        """Run a target of the Makefile and return what it printed."""
        words = ["make", "--no-print-directory", target]
        return output_of(words, limit_s=BUILD_LIMIT_S, env={**self.env, **env})

    def up(self) -> None:
        """Run `make docker-dev`."""
        self.said = self.make("docker-dev")

    def run(self, *arguments: str, says: str = "") -> str:
        """Run `docker compose` in this project."""
        return docker("compose", *arguments, says=says, **self.env)

    def inside(self, service: str, *command: str, says: str = "") -> str:
        """Run a command in a service's container; `says` is its input."""
        return self.run("exec", "-T", service, *command, says=says)

    @property
    def url(self) -> str:
        """Return the address that was printed."""
        found = re.search(r"^ready: (\S+)/v1$", self.said, re.MULTILINE)
        assert found is not None, self.said
        return found[1]

    @property
    def key(self) -> str:
        """Return the key that was printed."""
        found = re.search(r"Bearer (sk-iir-[a-z2-7-]+)", self.said)
        assert found is not None, self.said
        return found[1]

    @property
    def headers(self) -> dict[str, str]:
        """Return what a client sends."""
        return {"authorization": f"Bearer {self.key}"}

    def ask(self, **more: object) -> httpx.Response:
        """Ask the capital of France."""
        body = {"model": "default", "messages": MESSAGES, "temperature": 0, **more}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=self.headers, trust_env=False, timeout=60)

    def is_served(self) -> bool:
        """Tell whether the question is answered, rightly."""
        try:
            answer = self.ask()
        except httpx.HTTPError:
            return False
        if answer.status_code != 200:
            assert answer.status_code in {404, 502, 503}, answer.text
            return False
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        return True

    def until_served(self, limit_s: float) -> float:
        """Wait until it is answered; return how long it took."""
        return until(self.is_served, limit_s, "the model answers", every_s=0.2)

    def state(self, service: str) -> dict[str, Any]:
        """Return what the engine says of a service's container."""
        (found,) = json.loads(docker("inspect", self.run("ps", "--all", "--quiet", service)))
        return dict(found)

    def crash(self, service: str) -> None:
        """End a container as a crash does: the engine was not asked to, and starts it again."""
        pid = str(self.state(service)["State"]["Pid"])
        as_root = ("run", "--rm", "--pid", "host", "--user", "0", "--entrypoint", "sh")
        docker(*as_root, ROUTER_IMAGE, "-c", f"kill -9 {pid}")

    def left(self) -> dict[str, list[str]]:
        """Return what Docker still has of this project."""
        own = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        return {
            "containers": docker("ps", "--all", *own).split(),
            "networks": docker("network", "ls", *own).split(),
            "volumes": docker("volume", "ls", *own).split(),
        }


@contextmanager
def composed(**env: str) -> Iterator[Compose]:
    """Give a project that is gone afterwards, its volumes too."""
    require_compose()
    found = Compose(**env)
    try:
        yield found
    finally:
        found.make("docker-down", VOLUMES="1")
        assert not any(found.left().values()), found.left()
