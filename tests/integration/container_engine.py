"""The container engine of this machine, found as the agent finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker

from local_agent.containers import sdk
from local_agent.containers.address import candidates
from local_agent.containers.launcher import AGENT
from local_agent.ports import ContainerError
from tests.integration.stack import machine_environment, missing


def connected(timeout_s: int = 300) -> Any:
    """Return the SDK's client; without an engine the test is skipped, and fails in CI.

    `timeout_s` is how long a call to the engine may take.
    """
    try:
        found = sdk.connect(candidates(machine_environment(), Path.home()), timeout_s=15)
    except ContainerError as error:
        missing(f"a container engine: {error.strerror}")
    url = found._address.url
    found.close()
    return docker.DockerClient(base_url=url, timeout=timeout_s)


def of_agent(engine: Any, agent_id: str) -> list[Any]:
    """Return an agent's containers, ended ones included; one may go while the engine is asked."""
    own = {"label": f"{AGENT}={agent_id}"}
    return list(engine.containers.list(all=True, ignore_removed=True, filters=own))
