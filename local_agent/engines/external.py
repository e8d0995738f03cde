"""A server that somebody else runs (Ollama, LM Studio, Docker Model Runner): probed, never stopped."""

from __future__ import annotations

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric, unknown_options
from local_agent.ports import HttpProbe
from shared.contracts.apis import DEFAULT_APIS

_RUNNING = ("vllm:num_requests_running", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")


class External:
    """Attaches to `deployment.external_url`, with or without `/v1` at its end."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """Weights are the other server's business."""
        del deployment
        return False

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for an http address and for no options."""
        del host
        if not (deployment.external_url or "").startswith(("http://", "https://")):
            return "engine external needs the url of the running server, like http://127.0.0.1:PORT"
        return unknown_options(deployment, ())

    def launch(self, deployment: Deployment, port: int) -> None:
        """Return None: it is never started."""
        del deployment, port

    def readiness(self) -> HttpProbe:
        """Ask for the model list, which every server of the dialect has; few have `/health`."""
        return HttpProbe("/v1/models")

    def upstream_name(self, deployment: Deployment) -> str:
        """The other server may know the model by another name."""
        return deployment.upstream_name or deployment.model

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """What most servers speak; one that speaks more is declared by `apis`."""
        return DEFAULT_APIS if deployment.apis is None else deployment.apis

    def max_in_flight(self, deployment: Deployment) -> int | None:
        """No server tells, and others may use it too: what the configuration says, if anything."""
        return deployment.external_parallel

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read the names of vLLM and llama.cpp; other servers tell nothing."""
        return EngineLoad(
            running=sum(metric(metrics, name) for name in _RUNNING),
            waiting=sum(metric(metrics, name) for name in _WAITING),
        )


ENGINES.register("external")(External())
