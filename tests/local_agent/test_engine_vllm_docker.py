"""What a vLLM container gets, and what no option can give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from local_agent.config_file import parse_config
from local_agent.domain import Deployment, EngineLoad, HostFacts, ModelId
from local_agent.engines import ENGINES
from local_agent.ports import ContainerSpec, Launch
from local_agent.settings import load_settings

MAC = HostFacts(platform="darwin", arch="arm64", memory_mb=16_000)
LINUX = HostFacts(
    platform="linux", arch="x86_64", memory_mb=16_000, images=frozenset({"corp/vllm:9"})
)
GIB = 1024**3


def deployment(model: str = "org/m", **options: str) -> Deployment:
    return Deployment(model=ModelId(model), engine="vllm_docker", parallel=3, options=options)


def launched(**options: str) -> tuple[Launch, ContainerSpec]:
    launch = ENGINES["vllm_docker"].launch(deployment(**options), 4321)
    assert launch is not None
    assert launch.container is not None
    return launch, launch.container


def test_the_cpu_image_gets_the_documented_flags() -> None:
    launch, container = launched()
    assert " ".join(launch.argv) == (
        "org/m --host 0.0.0.0 --port 8000 --served-model-name org/m --max-model-len 4096"
        " --max-num-seqs 3 --dtype bfloat16"
    )
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert container == ContainerSpec(
        image="vllm/vllm-openai-cpu:v0.32.0",
        port=8000,
        repo="org/m",
        volumes={"iir-hf-cache": "/root/.cache/huggingface"},
        shm_bytes=4 * GIB,
        capabilities=("SYS_NICE",),
        security=("no-new-privileges", "seccomp=unconfined"),
    )


def test_options_become_flags_and_limits() -> None:
    options = {
        "repo": "Org/Other",
        "dtype": "float32",
        "kv_cache_gib": "2",
        "enforce_eager": "true",
    }
    launch, container = launched(
        **options, tool_parser="hermes", memory_gib="6", cpus="3", shm_gib="1"
    )
    assert launch.argv[0] == "Org/Other"
    assert launch.argv[-6:] == (
        *("--dtype", "float32", "--enforce-eager"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert (container.memory_bytes, container.cpus, container.shm_bytes) == (6 * GIB, 3.0, GIB)


def test_the_cuda_image_gets_the_gpus_and_less_privilege() -> None:
    launch, container = launched(image="vllm/vllm-openai:v0.32.0")
    assert container.has_gpus
    assert container.capabilities == ()
    assert container.security == ("no-new-privileges",)
    assert "VLLM_CPU_KVCACHE_SPACE" not in launch.env
    assert launch.argv[-1] == "auto"


@pytest.mark.parametrize(
    ("host", "options", "words"),
    [
        (LINUX, {}, None),
        (LINUX, {"image": "corp/vllm:9"}, None),
        (LINUX, {"image": "vllm/vllm-openai:v0.32.0"}, None),
        (MAC, {"image": "vllm/vllm-openai-cpu:v0.32.0-arm64"}, None),
        (MAC, {}, "set the option image to vllm/vllm-openai-cpu:v0.32.0-arm64"),
        (MAC, {"image": "corp/vllm:9"}, "the image corp/vllm:9 is not allowed"),
        (LINUX, {"image": "vllm/vllm-openai:latest"}, "is not allowed"),
        (LINUX, {"image": "evil/vllm/vllm-openai:v0.1.0"}, "is not allowed"),
        (LINUX, {"image": "--privileged"}, "must be an image's name"),
        (LINUX, {"volumes": "/:/host"}, "has no option volumes"),
        (LINUX, {"privileged": "true"}, "has no option privileged"),
        (LINUX, {"args": "--trust-remote-code"}, "has no option args"),
        (LINUX, {"repo": "/etc"}, "option repo of engine vllm_docker must be a repository"),
        (LINUX, {"repo": "../x"}, "must be a repository"),
        (LINUX, {"repo": "--trust-remote-code/x"}, "must be a repository"),
        (LINUX, {"dtype": "int4"}, "must be one of: auto, bfloat16"),
        (LINUX, {"memory_gib": "0"}, "must be a whole number over 0"),
        (LINUX, {"tool_parser": "--x"}, "tool parsers"),
    ],
)
def test_what_is_allowed(host: HostFacts, options: dict[str, Any], words: str | None) -> None:
    reason = ENGINES["vllm_docker"].unsupported_reason(host, deployment(**options))
    assert reason is None if words is None else words in (reason or "")


def test_a_model_without_a_repository_is_refused() -> None:
    reason = ENGINES["vllm_docker"].unsupported_reason(LINUX, deployment("tiny"))
    assert reason == "engine vllm_docker needs the option repo, like ORG/NAME"


def test_a_host_without_a_usable_engine_is_refused() -> None:
    host = HostFacts(
        platform="linux", arch="x86_64", memory_mb=1, container_problem="DOCKER_HOST names …"
    )
    reason = ENGINES["vllm_docker"].unsupported_reason(host, deployment())
    assert reason == "DOCKER_HOST names …"


def test_its_load_is_read_from_vllm_s_metrics() -> None:
    text = 'vllm:num_requests_running{m="a"} 4.0\nvllm:num_requests_waiting{m="a"} 3.0\n'
    assert ENGINES["vllm_docker"].parse_load(text) == EngineLoad(running=4, waiting=3)


def test_images_are_a_setting() -> None:
    assert load_settings().images == frozenset()
    found = load_settings(agent_images="corp/vllm:9, corp/b:1,")
    assert found.images == {"corp/vllm:9", "corp/b:1"}


def test_the_file_names_a_repository_and_no_source() -> None:
    text = "models: [{id: org/m, engine: vllm_docker, options: {memory_gib: 6}}]"
    config = parse_config(text, {}, name="agent.yaml", base=Path())
    assert config.models[-1].options == {"memory_gib": "6"}
