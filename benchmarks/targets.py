"""What is measured: the mock itself, the router, and the peers that are installed here."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import AGENT, DIRECT, LITELLM, REFERENCE, ROUTER, ROUTER_LARGE, ROUTER_PAIR
from benchmarks.machine import ROOT
from benchmarks.processes import free_port, plain_environment
from benchmarks.registry import MODEL, fill_registry, make_registry

NGINX = "nginx"
NAMES = (DIRECT, ROUTER, ROUTER_LARGE, ROUTER_PAIR, AGENT, NGINX, REFERENCE, LITELLM)
LARGE_MODELS, LARGE_ENDPOINTS = 10_000, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A gateway and how it is started; without a command it is the upstream itself."""

    name: str
    port: int
    folder: Path
    command: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    key: str = "sk-bench"
    path: str = "/v1/chat/completions"
    is_slow: bool = False
    """One round is enough, and takes long enough."""
    only_small: bool = False
    """Only the small requests are measured."""
    metrics: str = ""
    """Where it shows Prometheus' text, how late its event loop is among it; empty if nowhere."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that is not installed here."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Site:
    """Where targets are prepared: a folder of the run's own, and the upstreams' ports."""

    folder: Path
    upstreams: Sequence[int]

    def subfolder(self, name: str) -> Path:
        """Make and return a folder for one target."""
        path = self.folder / "".join(c if c.isalnum() else "-" for c in name)
        path.mkdir(mode=0o700)
        return path


def direct(site: Site) -> Target:
    """Return the mock upstream itself: the floor of latency."""
    return Target(name=DIRECT, port=site.upstreams[0], folder=site.folder)


def router(site: Site) -> Target:
    """Return the router with everything on: key, registry, routing, metrics, ledger, logs."""
    return _router(site, ROUTER)


def router_large(site: Site) -> Target:
    """Return the router with a registry of many models on many endpoints."""
    return _router(site, ROUTER_LARGE, is_large=True)


def router_pair(site: Site) -> Target:
    """Return the router as two processes that share the port."""
    return _router(site, ROUTER_PAIR, processes=2)


def _router(site: Site, name: str, *, is_large: bool = False, processes: int = 1) -> Target:
    folder = site.subfolder(name)
    # PYTHONPATH, for the folder is not the checkout: its `.env` must not be read.
    env = plain_environment(
        {
            "IIR_HOME": str(folder),
            "LOG_JSON": "true",
            "LOG_LEVEL": "info",
            "PYTHONPATH": str(ROOT),
            "ROUTER_PUBLIC_ROUTES": "metrics",
            "WEB_CONCURRENCY": str(processes),
        }
    )
    key = make_registry(folder, env, site.upstreams)
    if is_large:
        fill_registry(
            folder,
            site.upstreams[0],
            model_count=LARGE_MODELS - 1,
            endpoint_count=LARGE_ENDPOINTS - len(site.upstreams),
        )
    port = free_port()
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1"]
    return Target(
        name=name,
        port=port,
        folder=folder,
        command=[*command, "--port", str(port)],
        env=env,
        key=key,
        only_small=name != ROUTER,
        metrics="/metrics",
    )


def agent(site: Site) -> Target:
    """Return the agent, asked by itself, with one model on a server that runs already."""
    folder = site.subfolder(AGENT)
    url = f"http://127.0.0.1:{site.upstreams[0]}"
    config = {"known_models": False, "models": [{"id": MODEL, "engine": "external", "url": url}]}
    path = folder / "agent.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    port = free_port()
    env = plain_environment(
        {
            "AGENT_CONFIG": str(path),
            "AGENT_PORT": str(port),
            "IIR_HOME": str(folder),
            "LOG_JSON": "true",
            "LOG_LEVEL": "info",
            "PYTHONPATH": str(ROOT),
        }
    )
    command = [sys.executable, "-m", "local_agent", "serve"]
    return Target(name=AGENT, port=port, folder=folder, command=command, env=env)


def vllm_router(site: Site) -> Target | Missing:
    """Return the router of the vLLM project: on PATH, or where VLLM_ROUTER says."""
    program = _find("VLLM_ROUTER", "vllm-router")
    if program is None:
        return Missing(REFERENCE, "not on PATH, and VLLM_ROUTER names no program")
    port = free_port()
    urls = [f"http://127.0.0.1:{upstream}" for upstream in site.upstreams]
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls]
    command += ["--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return Target(
        name=REFERENCE,
        port=port,
        folder=site.subfolder(REFERENCE),
        command=command,
        env=plain_environment({}),
    )


def litellm(site: Site) -> Target | Missing:
    """Return LiteLLM's proxy: on PATH, or where LITELLM says."""
    program = _find("LITELLM", "litellm")
    if program is None:
        return Missing(LITELLM, "not on PATH, and LITELLM names no program")
    folder = site.subfolder(LITELLM)
    parameters = [
        {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "none"}
        for port in site.upstreams
    ]
    models = [{"model_name": MODEL, "litellm_params": one} for one in parameters]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models}), encoding="utf-8")
    port = free_port()
    key = f"sk-{secrets.token_hex(32)}"  # it refuses to start without one, or with a weak one
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return Target(
        name=LITELLM,
        port=port,
        folder=folder,
        command=[*command, "--num_workers", "1", "--telemetry", "False"],
        # Without its own cost map each start asks the internet for prices.
        env=plain_environment(
            {
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
                "LITELLM_MASTER_KEY": key,
            }
        ),
        key=key,
        is_slow=True,
    )


_NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 32m; client_body_buffer_size 1m; keepalive_requests 1000000000;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp;
  scgi_temp_path tmp;
  upstream mocks {{ {servers} keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mocks; proxy_http_version 1.1; proxy_set_header connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx(site: Site) -> Target | Missing:
    """Return nginx as a plain proxy: what moving the bytes costs in C."""
    program = shutil.which("nginx")
    if program is None:
        return Missing(NGINX, "not on PATH")
    folder = site.subfolder(NGINX)
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in site.upstreams)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(servers=servers, port=port), encoding="utf-8")
    command = [program, "-e", "stderr", "-p", str(folder), "-c", str(config)]
    return Target(name=NGINX, port=port, folder=folder, command=command, env=plain_environment({}))


def _find(variable: str, name: str) -> str | None:
    return shutil.which(os.environ.get(variable) or name)


MAKERS: dict[str, Callable[[Site], Target | Missing]] = {
    DIRECT: direct,
    ROUTER: router,
    ROUTER_LARGE: router_large,
    ROUTER_PAIR: router_pair,
    AGENT: agent,
    NGINX: nginx,
    REFERENCE: vllm_router,
    LITELLM: litellm,
}
