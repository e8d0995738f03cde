"""Joining as people do it: real processes of router and agent, and the commands between them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from local_agent.process import free_port
from shared.kit.clock import monotonic
from tests.local_agent.harness import CHAT, MESSAGES

ROOT = Path(__file__).parents[2]
SIMULATED = {"id": "sim", "engine": "simulated", "preload": True}
LIMIT_S = 30.0


class Machines:
    """Two machines on one: the homes and ports of a router and an agent, and their processes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.router_url = f"http://127.0.0.1:{free_port()}"
        self.agent_url = f"http://127.0.0.1:{free_port()}"
        self.credential = folder / "agent" / "agent" / "credential"
        self.logs: list[Path] = []
        agent_file = folder / "agent" / "agent" / "agent.yaml"
        agent_file.parent.mkdir(parents=True)
        agent_file.write_text(json.dumps({"known_models": False, "models": [SIMULATED]}))

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "AGENT_NAME": "mac", **more}

    def run(self, program: str, *words: str, entry: str = "", code: int = 0) -> str:
        """Run a command to its end, and return all that it wrote."""
        home = self.folder / ("router" if program == "router" else "agent")
        done = subprocess.run(
            [sys.executable, "-m", program, *words],
            cwd=self.folder,
            env=self.environment(IIR_HOME=str(home)),
            input=entry,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    @contextmanager
    def serving(self, program: str, port: str, **more: str) -> Iterator[None]:
        home = "router" if program == "router" else "agent"
        log = self.folder / f"{program}-{len(self.logs)}.log"
        self.logs.append(log)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", program, "serve", "--port", port],
                cwd=self.folder,
                env=self.environment(IIR_HOME=str(self.folder / home), **more),
                stdout=output,
                stderr=output,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT_S)

    def start_router(self) -> None:
        port = self.router_url.rsplit(":", 1)[1]
        quick = {"ROUTER_LEASE_RENEW_S": "0.2", "ROUTER_LEASE_TTL_S": "2"}
        self._stack.enter_context(self.serving("router", port, **quick))
        self.until(lambda: self.get(self.router_url, "/readyz") is not None)

    def start_agent(self) -> None:
        port = self.agent_url.rsplit(":", 1)[1]
        self._stack.enter_context(self.serving("local_agent", port, AGENT_DRAIN_S="1"))

    def get(self, url: str, path: str) -> httpx.Response | None:
        try:
            answer = httpx.get(url + path, trust_env=False, verify=False, timeout=5)
        except httpx.HTTPError:
            return None
        return answer if answer.is_success else None

    def lease(self) -> str | None:
        answer = self.get(self.agent_url, "/readyz")
        return None if answer is None else str(answer.json()["lease"])

    def until(self, holds: Callable[[], bool]) -> None:
        end = monotonic() + LIMIT_S
        while not holds():
            assert monotonic() < end, "\n".join(log.read_text()[-2000:] for log in self.logs)
            time.sleep(0.1)

    def chat(self) -> int:
        body = {"model": "sim", "messages": MESSAGES}
        url = self.router_url + CHAT
        return httpx.post(url, json=body, trust_env=False, verify=False, timeout=30).status_code


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(tmp_path, stack)


@pytest.mark.slow
def test_invite_join_serve_rotate_revoke(machines: Machines) -> None:
    machines.start_router()
    token = machines.run("router", "agents", "invite", "--quiet").strip()
    machines.start_agent()
    machines.until(lambda: machines.lease() == "no_credential")
    said = machines.run("local_agent", "join", machines.router_url, "-", entry=token + "\n")
    assert f"joined {machines.router_url} as mac" in said
    assert "iir-agent serve" in said
    assert "warning" not in said
    assert stat.S_IMODE(machines.credential.stat().st_mode) == 0o600
    first = machines.credential.read_text().split()[0]
    machines.until(lambda: machines.lease() == "held")
    machines.until(lambda: machines.chat() == 200)
    [listed] = json.loads(machines.run("router", "agents", "list", "--json"))
    assert (listed["name"], listed["state"], listed["models"]) == ("mac", "ready", ["sim"])

    said = machines.run("local_agent", "join", machines.router_url, token, code=1)
    assert "used already" in said
    assert token not in said

    machines.run("local_agent", "rotate")
    second = machines.credential.read_text().split()[0]
    assert second != first
    for credential, status in ((first, 401), (second, 200)):
        headers = {"authorization": f"Bearer {credential}"}
        url = f"{machines.router_url}/internal/v1/agents/confirm"
        machines.until(
            lambda h=headers, u=url, s=status: (  # type: ignore[misc]  # bound now
                httpx.post(u, headers=h, trust_env=False, verify=False).status_code == s
            )
        )
    machines.until(lambda: machines.lease() == "held")
    assert machines.chat() == 200

    machines.run("router", "agents", "revoke", "mac")
    machines.until(lambda: machines.lease() == "refused")
    machines.until(lambda: machines.chat() != 200)
    for log in machines.logs:
        text = log.read_text()
        for secret in (token, first, second):
            assert secret.rsplit("-", 1)[1] not in text
