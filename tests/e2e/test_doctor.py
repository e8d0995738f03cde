"""`iir-agent doctor` with a real router and a real agent, and labels that change in between."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pytest

from local_agent.control.lease_core import LeaseStatus
from local_agent.doctor.examine import examine
from local_agent.doctor.finding import Finding
from local_agent.settings import load_settings
from router.store.agents import revoke_agent
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.e2e.harness import Site
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, external, until

NEVER = {"router_lease_renew_s": 100, "router_lease_ttl_s": 300}


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Let the tests of the Docker SDK ask an engine: these would leave its sockets to the collector."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")


async def found(site: Site, *base_urls: str) -> dict[str, list[Finding]]:
    settings = load_settings(iir_home=site.agent_home, router_url=site.router_url, agent_port=0)
    findings = await anyio.to_thread.run_sync(lambda: list(examine(settings, base_urls)))
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


async def test_a_router_that_knows_the_agent(site: Site) -> None:
    site.credential_path.chmod(0o600)
    async with site.router():
        alone = await found(site)
        assert [one.level for one in alone["credential"]] == ["ok", "ok"]
        assert alone["credential"][1].message.endswith("accepts it and calls this agent mac")
        assert alone["protocol"][0].level == "ok"
        assert alone["agent"][0].level == "note"
        async with site.agent() as agent:
            await agent.until_lease(LeaseStatus.HELD)
            beside = await found(site, agent.base_url)
            assert beside["agent"][0].message == f"it runs at {agent.base_url}"
            assert beside["lease"][0].level == "ok"
            assert beside["port"][0].message == f"the agent has {agent.base_url}"


async def test_a_router_that_has_revoked_the_agent(site: Site) -> None:
    async with site.router() as router:
        router.write(lambda connection: revoke_agent(connection, "mac"))
        await router.catch_up()
        findings = await found(site)
        assert findings["credential"][-1].level == "problem"
        assert "refuses it" in findings["credential"][-1].message
        assert "iir agents invite" in str(findings["credential"][-1].fix)


async def test_labels_reach_the_router_and_requests_go_on(site: Site) -> None:
    slow = EngineOptions(models=("engine/tiny",), latency=Latency(itl_s=0.02), tokens=30)
    async with site.router(**NEVER) as router, site.agent(engine=slow) as agent:
        await agent.until_lease(LeaseStatus.HELD)
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        async with router.client.stream("POST", CHAT, json=body) as response:
            pieces = response.aiter_text()
            text = await anext(pieces)
            await relabel(agent, entry, {"room": "attic"})
            await until(lambda: labels(router) == [{"room": "attic"}])
            text += "".join([piece async for piece in pieces])
        assert text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in text
        await relabel(agent, entry, {})
        await until(lambda: labels(router) == [{}])
        assert agent.agent.lease.status is LeaseStatus.HELD


async def relabel(agent: RunningAgent, entry: dict[str, Any], values: dict[str, str]) -> None:
    agent.rewrite(entry, labels=values)
    assert (await agent.client.post("/internal/reload", json={})).status_code == 200


def labels(router: Any) -> list[dict[str, str]]:
    return [member.registration.labels for member in router.router.fleet.membership]
