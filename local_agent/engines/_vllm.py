"""What is true of vLLM however it runs: its options, its flags, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

from local_agent.domain import REPOSITORY, Deployment, EngineLoad
from local_agent.engines import metric, unknown_options
from local_agent.ports import HttpProbe
from shared.contracts.apis import APIS

NUMBER = (re.compile(r"[1-9]\d{0,3}"), "a whole number over 0")
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_DTYPES = ("auto", "bfloat16", "float16", "float32")
_KV_CACHE_GIB = "4"

Options = Mapping[str, tuple[re.Pattern[str], str]]
"""By name: what a value has to match, and how to say that."""

OPTIONS: Options = {
    "dtype": (re.compile("|".join(_DTYPES)), f"one of: {', '.join(_DTYPES)}"),
    "enforce_eager": (re.compile(r"true|false"), "true or false"),
    "kv_cache_gib": NUMBER,
    "repo": (REPOSITORY, "a repository of the hub, like ORG/NAME"),
    "tool_parser": (
        re.compile(r"[a-z][a-z0-9_]{0,40}"),
        "the name of one of vLLM's tool parsers, like hermes",
    ),
}


class VllmServer:
    """The part of an engine's description that does not depend on how vLLM is run."""

    def readiness(self) -> HttpProbe:
        """`/health` refuses connections until the weights are loaded."""
        return HttpProbe("/health")

    def upstream_name(self, deployment: Deployment) -> str:
        """The model is served under its own id."""
        return deployment.model

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """A generating model serves all but embeddings."""
        del deployment
        return tuple(api for api in APIS if api != "embeddings")

    def max_in_flight(self, deployment: Deployment) -> int:
        """It batches so many; more wait inside it."""
        return deployment.parallel

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read vLLM's own metric names."""
        return EngineLoad(
            running=metric(metrics, "vllm:num_requests_running"),
            waiting=metric(metrics, "vllm:num_requests_waiting"),
        )


def wrong_option(deployment: Deployment, known: Options) -> str | None:
    """Say which option there is not, or has a wrong value; None if all are fine."""
    unknown = unknown_options(deployment, known)
    if unknown is not None:
        return unknown
    for name, value in sorted(deployment.options.items()):
        pattern, kind = known[name]
        if not pattern.fullmatch(value):
            return f"option {name} of engine {deployment.engine} must be {kind}"
    return None


def is_repo(text: str) -> bool:
    """Tell whether the text names a repository of the hub."""
    return REPOSITORY.fullmatch(text) is not None


def kv_cache_gib(deployment: Deployment) -> int:
    """Return the size of the KV cache of vLLM on a CPU, which takes all of it at its start."""
    return int(deployment.options.get("kv_cache_gib", _KV_CACHE_GIB))


def serve_flags(deployment: Deployment, *, host: str, port: int, dtype: str) -> tuple[str, ...]:
    """Return the flags beside the model.

    Args:
        deployment: with options that `wrong_option` has passed.
        host: address to listen on.
        port: port to listen on.
        dtype: the type to compute in, where no option says it.
    """
    option = deployment.options.get
    flags = [
        *("--host", host, "--port", str(port)),
        *("--served-model-name", deployment.model),
        *("--max-model-len", str(deployment.context_tokens)),
        *("--max-num-seqs", str(deployment.parallel)),
        *("--dtype", option("dtype", dtype)),
    ]
    if option("enforce_eager") == "true":
        flags.append("--enforce-eager")
    if parser := option("tool_parser"):
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    return tuple(flags)
