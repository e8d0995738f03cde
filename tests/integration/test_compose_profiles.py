"""The profiles of docker-compose.yml: Redis, and Prometheus that reads router and agent."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from local_agent.process import free_port
from tests.integration.compose_stack import composed, require_compose
from tests.integration.stack import until
from tests.integration.stand_ins import PROMETHEUS, REDIS, Prometheus, build_stand_in

pytestmark = pytest.mark.integration

SCRAPED_S = 60.0  # every 15 s, and the first time within them
ASK_REDIS = """
import socket
with socket.create_connection(("redis", 6379), timeout=5) as link:
    link.sendall(b"PING\\r\\n")
    print(link.recv(100).decode())
"""


def test_redis_serves_its_neighbours_alone_and_keeps_its_data() -> None:
    require_compose()
    build_stand_in(REDIS)
    with composed(COMPOSE_PROFILES="redis", REDIS_IMAGE=REDIS) as stack:
        stack.run("up", "--detach", "--build", "--wait", "router", "redis")
        assert stack.inside("router", "python", "-c", ASK_REDIS) == "+PONG"
        found = stack.state("redis")
        assert found["State"]["Health"]["Status"] == "healthy"
        assert found["NetworkSettings"]["Ports"] == {"6379/tcp": None}
        assert found["HostConfig"]["ReadonlyRootfs"] is True
        assert stack.inside("redis", "id", "-u") == "999"
        stack.inside("redis", "redis-cli", "set", "kept", "yes")
        stack.make("docker-down")
        stack.run("up", "--detach", "--wait", "redis")
        assert stack.inside("redis", "redis-cli", "get", "kept") == "yes"


def test_prometheus_reads_router_and_agent_with_the_keys_it_needs(tmp_path: Path) -> None:
    require_compose()
    build_stand_in(PROMETHEUS)
    port = free_port()
    prometheus = Prometheus(port)
    router, agent = ("router:8000", "up"), ("agent:5000", "up")
    images = {"COMPOSE_PROFILES": "prometheus", "PROMETHEUS_IMAGE": PROMETHEUS}
    with composed(**images, PROMETHEUS_PORT=str(port), AGENT_PULL="") as stack:
        stack.run("up", "--detach", "--build", "--wait")
        both = {"iir-router": router, "iir-agent": agent}
        until(lambda: prometheus.targets() == both, SCRAPED_S, "both are scraped", every_s=0.5)
        assert (prometheus.value("iir_snapshot_version") or 0) > 0
        assert prometheus.value('iir_agent_worker_ready{model="smollm2-135m"}') == 0
        published = stack.state("prometheus")["NetworkSettings"]["Ports"]["9090/tcp"]
        assert published == [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
        assert stack.inside("prometheus", "id", "-u") == "65534"

        # whoever closes the router's figures gives Prometheus a key
        stack.env["ROUTER_PUBLIC_ROUTES"] = ""
        stack.run("up", "--detach", "--wait")
        url = f"http://{stack.run('port', 'router', '8000')}/metrics"
        assert httpx.get(url, trust_env=False).status_code == 401
        closed = {"iir-router": ("router:8000", "down"), "iir-agent": agent}
        until(lambda: prometheus.targets() == closed, SCRAPED_S, "it is refused", every_s=0.5)
        # it was down while it started anew, too
        until(lambda: "401" in prometheus.problem("iir-router"), SCRAPED_S, "with 401", every_s=0.5)
        make = ("iir", "keys", "create", "--name", "prometheus", "--scope", "admin", "--quiet")
        key = tmp_path / "prometheus.key"
        key.write_text(f"{stack.inside('router', *make)}\n")
        key.chmod(0o644)
        stack.env["PROMETHEUS_KEY_FILE"] = str(key)
        stack.run("up", "--detach", "--wait")
        until(lambda: prometheus.targets() == both, SCRAPED_S, "it has its key", every_s=0.5)
        assert httpx.get(url, trust_env=False).status_code == 401
