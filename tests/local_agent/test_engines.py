"""One contract for all engines, and a table for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from local_agent.domain import Deployment, EngineLoad, HostFacts, ModelId
from local_agent.engines import ENGINES, choose_engine, metric
from local_agent.engines._llama_cpp_server import arguments, parameters
from shared.contracts.apis import APIS, DEFAULT_APIS

HOST = HostFacts(
    platform="darwin",
    arch="arm64",
    memory_mb=16_000,
    modules=frozenset({"xllamacpp"}),
    environments=frozenset({"vllm", "mlx_lm", "torch_mps", "vllm_metal", "vllm_mlx"}),
)
BARE = HostFacts(platform="linux", arch="x86_64", memory_mb=4_000)
WEIGHTS = Path("/home/somebody/models/m/m.gguf")

GOOD = {
    "llama_cpp": Deployment(model=ModelId("org/m"), engine="llama_cpp", weights=WEIGHTS),
    "simulated": Deployment(
        model=ModelId("org/m"), engine="simulated", options={"ttft_ms": "5", "tokens": "3"}
    ),
    **{
        name: Deployment(model=ModelId("org/m"), engine=name, weights=Path("/models/qwen"))
        for name in ("mlx_lm", "torch_mps", "vllm_metal", "vllm_mlx")
    },
    "vllm": Deployment(model=ModelId("org/m"), engine="vllm", weights=Path("/models/qwen")),
    "vllm_docker": Deployment(
        model=ModelId("org/m"),
        engine="vllm_docker",
        options={"image": "vllm/vllm-openai-cpu:v0.32.0-arm64"},
    ),
    "external": Deployment(
        model=ModelId("org/m"), engine="external", external_url="http://127.0.0.1:11434/v1"
    ),
}

# as llama.cpp and vLLM wrote them, shortened
LLAMA_CPP = """\
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
llamacpp:n_busy_slots_per_decode 0
"""
VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 4.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 3.0
"""


def test_the_contract_covers_every_engine() -> None:
    assert set(ENGINES) == set(GOOD)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_an_engine_is_a_pure_description(name: str) -> None:
    engine, deployment = ENGINES[name], GOOD[name]
    assert engine.unsupported_reason(HOST, deployment) is None
    first, again = engine.launch(deployment, 4321), engine.launch(deployment, 4321)
    assert first == again
    if first is not None:
        is_process = first.container is None
        assert ("4321" in first.argv) is is_process
        assert all(first.argv)
        assert (first.cwd is not None) is is_process
        assert not any("KEY" in key or key.endswith("TOKEN") for key in first.env)
    assert engine.readiness().path.startswith("/")
    assert engine.readiness().timeout_s > 0
    assert engine.upstream_name(deployment) == "org/m"


@pytest.mark.parametrize("name", sorted(GOOD))
def test_an_engine_says_what_it_speaks_and_how_much_it_takes(name: str) -> None:
    engine, deployment = ENGINES[name], GOOD[name]
    apis, most = engine.apis(deployment), engine.max_in_flight(deployment)
    assert apis
    assert set(apis) <= set(APIS)
    assert most is None or most > 0


@pytest.mark.parametrize(
    ("engine", "fields", "apis", "most"),
    [
        ("llama_cpp", {"parallel": 3}, APIS, 3),
        ("llama_cpp", {"options": {"embeddings": "True"}}, APIS, 2),
        (
            "llama_cpp",
            {"options": {"embeddings": "false"}},
            ("chat", "completions", "responses", "messages"),
            2,
        ),
        ("simulated", {}, APIS, 64),
        ("simulated", {"options": {"persona": "anthropic", "slots": "5"}}, ("messages",), 5),
        ("simulated", {"options": {"persona": "openai"}}, APIS[:4], 64),
        ("mlx_lm", {"parallel": 3}, ("chat", "completions"), 3),
        ("torch_mps", {"parallel": 3}, ("chat", "completions"), 1),
        ("vllm_mlx", {"parallel": 3}, ("chat", "completions", "responses", "messages"), 3),
        ("vllm_metal", {"parallel": 3}, ("chat", "completions", "responses", "messages"), 3),
        ("vllm_docker", {"parallel": 8}, ("chat", "completions", "responses", "messages"), 8),
        ("external", {}, DEFAULT_APIS, None),
        ("external", {"apis": ("chat", "responses")}, ("chat", "responses"), None),
    ],
)
def test_apis_and_slots(
    engine: str, fields: dict[str, Any], apis: tuple[str, ...], most: int | None
) -> None:
    deployment = Deployment(model=ModelId("m"), engine=engine, **fields)
    assert ENGINES[engine].apis(deployment) == apis
    assert ENGINES[engine].max_in_flight(deployment) == most


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"persona": "hal"}, "persona of engine simulated must be one of: vllm, llamacpp"),
        ({"slots": "0"}, "slots of engine simulated must be a whole number over 0"),
        ({"slots": "many"}, "slots of engine simulated must be a whole number over 0"),
    ],
)
def test_wrong_options_of_the_simulated_engine(options: dict[str, str], words: str) -> None:
    deployment = Deployment(model=ModelId("m"), engine="simulated", options=options)
    reason = ENGINES["simulated"].unsupported_reason(BARE, deployment)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("text", ["", "nonsense", "a{b 1", "vllm:num_requests_running NaN", "\n\n"])
def test_a_load_that_is_not_told_is_none(name: str, text: str) -> None:
    assert ENGINES[name].parse_load(text) == EngineLoad()


@pytest.mark.parametrize("name", sorted(GOOD))
def test_unknown_options_are_named_with_the_known_ones(name: str) -> None:
    good = GOOD[name]
    wrong = Deployment(
        model=good.model,
        engine=name,
        weights=good.weights,
        external_url=good.external_url,
        options={"colour": "red"},
    )
    reason = ENGINES[name].unsupported_reason(HOST, wrong)
    assert reason is not None
    assert f"engine {name} has no option colour" in reason


@pytest.mark.parametrize(
    ("name", "text", "load"),
    [
        ("llama_cpp", LLAMA_CPP, EngineLoad(2, 1)),
        ("simulated", VLLM, EngineLoad(4, 3)),
        ("external", VLLM, EngineLoad(4, 3)),
        ("external", LLAMA_CPP, EngineLoad(2, 1)),
    ],
)
def test_the_load_is_read_from_real_metrics(name: str, text: str, load: EngineLoad) -> None:
    assert ENGINES[name].parse_load(text) == load


def test_a_metric_is_summed_over_its_labels() -> None:
    text = 'x{a="1"} 1\nx{a="2"} 2.0 1700000000\nxy 5\nx{a="}"} 4\nx{a="3"} +Inf\nx\nx much\n'
    assert metric(text, "x") == 7


@pytest.mark.parametrize(
    ("fields", "engine"),
    [
        ({"engine": "auto"}, "llama_cpp"),
        ({"engine": "auto", "weights": WEIGHTS}, "llama_cpp"),
        ({"engine": "auto", "external_url": "http://127.0.0.1:1"}, "external"),
        ({"engine": "simulated", "weights": WEIGHTS}, "simulated"),
    ],
)
def test_auto_picks_by_what_is_there(fields: dict[str, object], engine: str) -> None:
    deployment = Deployment(model=ModelId("m"), **fields)  # type: ignore[arg-type]
    assert choose_engine(deployment) == engine


@pytest.mark.parametrize(
    ("host", "weights", "options", "words"),
    [
        (BARE, WEIGHTS, {}, "its extra `llama`"),
        (HOST, None, {}, "GGUF"),
        (HOST, Path("m.safetensors"), {}, "GGUF"),
        (HOST, WEIGHTS, {"gpu_layers": "many"}, "gpu_layers of engine llama_cpp must be a whole"),
        (HOST, WEIGHTS, {"embeddings": "1"}, "embeddings of engine llama_cpp must be true or"),
    ],
)
def test_llama_cpp_says_what_is_missing(
    host: HostFacts, weights: Path | None, options: dict[str, str], words: str
) -> None:
    deployment = Deployment(
        model=ModelId("m"), engine="llama_cpp", weights=weights, options=options
    )
    reason = ENGINES["llama_cpp"].unsupported_reason(host, deployment)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("url", [None, "", "file:///etc/passwd", "127.0.0.1:1"])
def test_external_needs_an_address(url: str | None) -> None:
    deployment = Deployment(model=ModelId("m"), engine="external", external_url=url)
    reason = ENGINES["external"].unsupported_reason(HOST, deployment)
    assert reason is not None
    assert "needs the url" in reason


def test_external_can_have_another_name_there() -> None:
    deployment = Deployment(model=ModelId("m"), engine="external", upstream_name="llama3:8b")
    assert ENGINES["external"].upstream_name(deployment) == "llama3:8b"


class Recorder:
    """Stands for xllamacpp: takes every attribute that llama.cpp has, checks nothing."""

    class CommonParams:
        def __init__(self) -> None:
            self.model = type("Model", (), {})()
            self.cpuparams = type("Cpu", (), {"n_threads": -1})()
            self.embedding = False

    class llama_pooling_type:  # noqa: N801 - the module's own name
        LLAMA_POOLING_TYPE_MEAN = 1


def launched(options: dict[str, str]) -> list[str]:
    deployment = Deployment(
        model=ModelId("org/m"),
        engine="llama_cpp",
        weights=WEIGHTS,
        context_tokens=1024,
        parallel=3,
        options=options,
    )
    launch = ENGINES["llama_cpp"].launch(deployment, 4321)
    assert launch is not None
    assert launch.argv[1:3] == ("-m", "local_agent.engines._llama_cpp_server")
    return list(launch.argv[3:])


def test_the_server_program_understands_its_launch() -> None:
    params = parameters(arguments(launched({})), Recorder)
    assert params.model.path == "m.gguf"
    assert params.model_alias == {"org/m"}
    assert (params.hostnames, params.port) == (["127.0.0.1"], 4321)
    assert (params.n_ctx, params.n_parallel) == (3072, 3)
    assert (params.n_batch, params.n_ubatch) == (1024, 1024)
    assert params.embedding
    assert params.n_gpu_layers == -1
    assert not params.endpoint_slots
    assert params.verbosity == 1


def test_options_reach_llama_cpp() -> None:
    options = {"gpu_layers": "0", "threads": "4", "batch_tokens": "256", "embeddings": "False"}
    params = parameters(arguments(launched(options)), Recorder)
    assert (params.n_gpu_layers, params.cpuparams.n_threads, params.n_ubatch) == (0, 4, 256)
    assert not params.embedding
