"""llama.cpp from the wheel `xllamacpp`: GGUF weights, on Metal where there is one, else on the CPU."""

from __future__ import annotations

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric, python_launch, unknown_options
from local_agent.ports import HttpProbe, Launch
from shared.contracts.apis import APIS

_OPTIONS = {
    "gpu_layers": "--gpu-layers",
    "threads": "--threads",
    "batch_tokens": "--batch-tokens",
    "embeddings": "--embeddings",
}
_SERVER = "local_agent.engines._llama_cpp_server"


class LlamaCpp:
    """Runs our small server program on xllamacpp, in a process of its own."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """It loads a GGUF file."""
        del deployment
        return True

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for the module, a GGUF file and options that exist."""
        if "xllamacpp" not in host.modules:
            return (
                "llama.cpp is not installed; install this program again with its extra `llama`"
                " (in a checkout: make setup)"
            )
        if deployment.weights is None or deployment.weights.suffix.lower() != ".gguf":
            return "llama.cpp loads GGUF weights only; use a source with a .gguf file"
        return unknown_options(deployment, _OPTIONS) or _wrong_value(deployment)

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server program's command line. The program keeps paths out of its log."""
        arguments = [
            *("--weights", str(deployment.weights)),
            *("--model", deployment.model),
            *("--port", str(port)),
            *("--context-tokens", str(deployment.context_tokens)),
            *("--parallel", str(deployment.parallel)),
        ]
        for name, value in sorted(deployment.options.items()):
            arguments += [_OPTIONS[name], value.lower()]
        return python_launch(_SERVER, arguments)

    def readiness(self) -> HttpProbe:
        """`/health` refuses connections until the weights are loaded."""
        return HttpProbe("/health")

    def upstream_name(self, deployment: Deployment) -> str:
        """The model is served under its own id."""
        return deployment.model

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """Its server speaks all of them; embeddings can be switched off."""
        has_embeddings = deployment.options.get("embeddings", "true").lower() == "true"
        return tuple(api for api in APIS if api != "embeddings" or has_embeddings)

    def max_in_flight(self, deployment: Deployment) -> int:
        """It has a slot for each; more wait inside it."""
        return deployment.parallel

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read llama.cpp's own metric names."""
        return EngineLoad(
            running=metric(metrics, "llamacpp:requests_processing"),
            waiting=metric(metrics, "llamacpp:requests_deferred"),
        )


def _wrong_value(deployment: Deployment) -> str | None:
    for name, value in sorted(deployment.options.items()):
        if name == "embeddings":
            is_good, kind = value.lower() in {"true", "false"}, "true or false"
        else:
            is_good, kind = value.removeprefix("-").isdecimal(), "a whole number"
        if not is_good:
            return f"option {name} of engine llama_cpp must be {kind}"
    return None


ENGINES.register("llama_cpp")(LlamaCpp())
