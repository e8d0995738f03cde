"""What to start, where: settings and free ports turned into one value."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_agent.settings import AgentSettings
from local_agent.settings import load_settings as load_agent_settings
from router.settings import Settings
from router.settings import load_settings as load_router_settings
from scripts.devstack.errors import PortTaken
from scripts.devstack.ports import free_port, holder, is_free

AGENT_PORT = 5000
AGENT_FALLBACK_PORT = 5055
MODEL = "smollm2-135m"
DRAIN_S = "2"  # all has to be over 5 s after Ctrl-C, the worker's own stop included


@dataclass(frozen=True)
class Plan:
    """Addresses, folders and the environment of the children."""

    home: Path
    router_url: str
    agent_url: str
    agent_name: str
    token_file: Path
    environment: Mapping[str, str]

    @property
    def record_path(self) -> Path:
        """Return the file that tells `make down` what runs."""
        return record_path(self.home)

    def log(self, name: str) -> Path:
        """Return the log of `router`, `agent` or `dev`."""
        return log_path(self.home, name)


def home() -> Path:
    """Return `$IIR_HOME`."""
    return load_router_settings().iir_home


def record_path(folder: Path) -> Path:
    """Return the record's path below `$IIR_HOME`."""
    return folder / "run" / "dev.json"


def log_path(folder: Path, name: str) -> Path:
    """Return a log's path below `$IIR_HOME`."""
    return folder / "logs" / f"{name}.log"


def make_plan() -> Plan:
    """Read both services' settings and choose the ports.

    Raises `PortTaken` if a port is in use, with the line that starts on another one.
    """
    router, agent = load_router_settings(), load_agent_settings()
    router_port = _router_port(router.router_host, router.router_port)
    agent_port = _agent_port(agent.agent_host, agent.agent_port)
    router_url = f"http://{url_host(router.router_host)}:{router_port}"
    token_file = agent.token_path.absolute()
    environment = dict(os.environ)
    environment |= _unset_drains(router, agent)
    environment |= {
        "IIR_HOME": str(router.iir_home),
        "ROUTER_HOST": router.router_host,
        "ROUTER_PORT": str(router_port),
        "ROUTER_URL": router_url,
        "AGENT_HOST": agent.agent_host,
        "AGENT_PORT": str(agent_port),
        "AGENT_TOKEN_FILE": str(token_file),
    }
    return Plan(
        home=router.iir_home,
        router_url=router_url,
        agent_url=f"http://{url_host(agent.agent_host)}:{agent_port}",
        agent_name=agent.agent_name,
        token_file=token_file,
        environment=environment,
    )


def command(package: str, *arguments: str) -> list[str]:
    """Return the command line that runs `iir` (`router`) or `iir-agent` (`local_agent`)."""
    return [sys.executable, "-m", package, *arguments]


def _unset_drains(router: Settings, agent: AgentSettings) -> dict[str, str]:
    """Return shorter limits for draining where the user set none."""
    given = router.model_fields_set | agent.model_fields_set
    names = ("router_drain_s", "agent_drain_s")
    return {name.upper(): DRAIN_S for name in names if name not in given}


def url_host(host: str) -> str:
    """Return the host of a URL that reaches a service which listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


def _router_port(host: str, wanted: int) -> int:
    if wanted == 0:
        return free_port(host)
    if is_free(host, wanted):
        return wanted
    raise PortTaken(
        _taken("router", wanted) + f"ROUTER_PORT={free_port(host, wanted + 1)} make dev"
    )


def _agent_port(host: str, wanted: int | None) -> int:
    if wanted is None:
        return AGENT_PORT if is_free(host, AGENT_PORT) else free_port(host, AGENT_FALLBACK_PORT)
    if wanted == 0:
        return free_port(host)
    if is_free(host, wanted):
        return wanted
    raise PortTaken(_taken("agent", wanted) + f"AGENT_PORT={free_port(host, wanted + 1)} make dev")


def _taken(service: str, port: int) -> str:
    who = holder(port)
    return (
        f"The {service}'s port {port} is taken{f' by {who}' if who else ''}.\n"
        "Stop that program, or start on another port: "
    )
