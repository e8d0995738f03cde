"""The simulated engine as a worker: for tests and demos, always labelled as such."""

from __future__ import annotations

import re

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric, python_launch, unknown_options
from local_agent.ports import HttpProbe, Launch
from shared.contracts.apis import API_PATHS, APIS
from shared.testing.personas import PERSONAS, Persona

_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("ttft_ms", "itl_ms", "load_ms", "tokens", "slots", "context", "seed", "fault"),
        "persona",
    )
}
_DEFAULT_PERSONA = "vllm"
_DEFAULT_SLOTS = "64"
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


_PERSONAS: dict[str, Persona] = {persona.name: persona for persona in PERSONAS}


class Simulated:
    """Runs `shared.testing.simulated_engine` in a process of its own."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """It has no model at all."""
        del deployment
        return False

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """It runs everywhere; only its options can be wrong."""
        del host
        wrong = unknown_options(deployment, _OPTIONS)
        if wrong is None and not _NUMBER.fullmatch(_slots(deployment)):
            return "option slots of engine simulated must be a whole number over 0"
        if wrong is None and _persona(deployment) not in _PERSONAS:
            known = ", ".join(_PERSONAS)
            return f"option persona of engine simulated must be one of: {known}"
        return wrong

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

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """What its persona speaks."""
        paths = _PERSONAS[_persona(deployment)].paths
        return tuple(api for api in APIS if f"/v1{API_PATHS[api][0]}" in paths)

    def max_in_flight(self, deployment: Deployment) -> int:
        """Return its slots; more wait inside it."""
        return int(_slots(deployment))

    def parse_load(self, metrics: str) -> EngineLoad:
        """It has vLLM's metric names."""
        return EngineLoad(
            running=metric(metrics, "vllm:num_requests_running"),
            waiting=metric(metrics, "vllm:num_requests_waiting"),
        )


def _persona(deployment: Deployment) -> str:
    return deployment.options.get("persona", _DEFAULT_PERSONA)


def _slots(deployment: Deployment) -> str:
    return deployment.options.get("slots", _DEFAULT_SLOTS)


ENGINES.register("simulated")(Simulated())
