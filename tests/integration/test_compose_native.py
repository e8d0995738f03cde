"""`make docker-dev` with the agent beside the engine, as on a Mac: here on Linux."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from local_agent.process import free_port
from tests.integration.compose_stack import Compose, composed, docker, require_compose
from tests.integration.stack import processes_of, until
from tests.integration.stand_ins import PROMETHEUS, Prometheus, build_stand_in

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="the engine of a Mac is not on its network"),
]

SCRAPED_S = 60.0


def serving(home: Path) -> psutil.Process:
    """Return the one agent with this `IIR_HOME`."""
    (found,) = [one for one in processes_of(home) if "serve" in one.cmdline()]
    return found


def assert_nothing_runs(stack: Compose, home: Path) -> None:
    assert processes_of(home) == []
    left = stack.left()
    assert left["containers"] == left["networks"] == []


def test_the_agent_natively_beside_a_router_in_a_container(tmp_path: Path) -> None:
    require_compose()
    build_stand_in(PROMETHEUS)
    home, agent_port, port = tmp_path / "home", free_port(), free_port()
    with composed(
        DOCKER_AGENT="native",
        IIR_HOME=str(home),
        AGENT_PORT=str(agent_port),
        COMPOSE_PROFILES="prometheus",
        PROMETHEUS_IMAGE=PROMETHEUS,
        PROMETHEUS_PORT=str(port),
    ) as stack:
        stack.up()
        assert sorted(stack.run("ps", "--services").split()) == ["prometheus", "router"]
        assert stack.is_served()
        agent = serving(home)
        # the router's way to it and no other
        gateway = docker(
            "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"
        )
        listening = {
            (one.laddr.ip, one.laddr.port) for one in agent.net_connections() if not one.raddr
        }
        assert (gateway, agent_port) in listening
        url = f"http://{gateway}:{agent_port}"
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401

        both = {
            "iir-router": ("router:8000", "up"),
            "iir-agent": (f"host.docker.internal:{agent_port}", "up"),
        }
        prometheus = Prometheus(port)
        until(lambda: prometheus.targets() == both, SCRAPED_S, "both are scraped", every_s=0.5)

        stack.up()  # a second time: the agent is another one, and alone
        assert stack.is_served()
        assert serving(home) != agent

        stack.make("docker-down")
        assert_nothing_runs(stack, home)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health", trust_env=False)

        stack.up()
        assert stack.is_served()
        serving(home).kill()  # its worker goes on
        stack.make("docker-down")
        assert_nothing_runs(stack, home)
