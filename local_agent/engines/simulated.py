"""The simulated engine as a worker: for tests and demos, always labelled as such."""

from __future__ import annotations

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric, python_launch, unknown_options
from local_agent.ports import HttpProbe, Launch

_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("ttft_ms", "itl_ms", "load_ms", "tokens", "slots", "context", "seed", "fault")
}


class Simulated:
    """Runs `shared.testing.simulated_engine` in a process of its own."""

    @property
    def needs_weights(self) -> bool:
        """It has no model at all."""
        return False

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """It runs everywhere; only its options can be wrong."""
        del host
        return unknown_options(deployment, _OPTIONS)

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the simulator's command line."""
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--model", deployment.model]
        for name, value in sorted(deployment.options.items()):
            arguments += [_OPTIONS[name], value]
        return python_launch("shared.testing.simulated_engine", arguments)

    def readiness(self) -> HttpProbe:
        """It answers like vLLM."""
        return HttpProbe("/health")

    def upstream_name(self, deployment: Deployment) -> str:
        """The model is served under its own id."""
        return deployment.model

    def parse_load(self, metrics: str) -> EngineLoad:
        """It has vLLM's metric names."""
        return EngineLoad(
            running=metric(metrics, "vllm:num_requests_running"),
            waiting=metric(metrics, "vllm:num_requests_waiting"),
        )


ENGINES.register("simulated")(Simulated())
