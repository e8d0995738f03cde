"""What `engine: auto` means: the fastest measured engine that can serve the weights, else their kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from local_agent.choice import answer_s, choose, shown_bench
from local_agent.config_file import parse_config, to_deployments
from local_agent.device import CPU_ONLY, CUDA, METAL, device
from local_agent.domain import Deployment, EngineLoad, HostFacts, Measured, ModelId
from local_agent.engines import ENGINES
from local_agent.ports import Engine, HttpProbe, Launch
from local_agent.weights.store import WeightStore
from shared.contracts.agents import Bench, PromptSpeed
from shared.kit.plugins import Plugins

M = ModelId("m")
AUTO = Deployment(model=M, engine="auto", weights=Path("m.gguf"))
HOST = HostFacts(platform="linux", arch="x86_64", memory_mb=8000, modules=frozenset({"xllamacpp"}))
MAC = replace(HOST, platform="darwin", arch="arm64")


class Other:
    """A second engine that loads what llama.cpp does."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem

    def needs_weights(self, deployment: Deployment) -> bool:
        return True

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        return self.problem

    def launch(self, deployment: Deployment, port: int) -> Launch | None:
        return Launch(("other",))

    def readiness(self) -> HttpProbe:
        return HttpProbe()

    def upstream_name(self, deployment: Deployment) -> str:
        return deployment.model

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        return ("chat",)

    def max_in_flight(self, deployment: Deployment) -> int | None:
        return 1

    def parse_load(self, metrics: str) -> EngineLoad:
        return EngineLoad()


def engines(problem: str | None = None) -> Plugins[Engine]:
    found: Plugins[Engine] = Plugins("engine", "tests.local_agent.no_engines")
    found.register("llama_cpp")(ENGINES["llama_cpp"])
    found.register("simulated")(ENGINES["simulated"])
    found.register("other")(Other(problem))
    found._is_filled = True  # there is no package to fill it from
    return found


def figures(engine: str, tokens_per_s: float, ttft_ms: float = 100.0, at: int = 1) -> Bench:
    ttft = (
        PromptSpeed(prompt_tokens=20, ttft_ms=1),
        PromptSpeed(prompt_tokens=900, ttft_ms=ttft_ms),
    )
    return Bench(engine=engine, ttft=ttft, tokens_per_s=tokens_per_s, measured_at=at)


def row(bench: Bench, deployment: Deployment = AUTO, **more: bool) -> Measured:
    as_it = replace(deployment, engine=bench.engine)
    return Measured(model=M, config_hash=as_it.config_hash, figures=bench, **more)


def measured(*rows: Measured) -> HostFacts:
    return replace(HOST, measured=rows)


def test_without_measurements_the_kind_of_weights_decides_and_says_so() -> None:
    choice = choose(AUTO, HOST, engines())
    assert choice.engine == "llama_cpp"
    assert "kind of its weights" in choice.reason
    assert "iir-agent bench m" in choice.reason


def test_the_fastest_measured_engine_wins() -> None:
    host = measured(row(figures("llama_cpp", 20)), row(figures("other", 40)))
    choice = choose(AUTO, host, engines())
    assert choice.engine == "other"
    assert choice.reason.startswith("the fastest measured here: 6.5 s")
    assert "llama_cpp 12.9 s" in choice.reason


def test_the_first_token_of_a_long_prompt_counts_too() -> None:
    host = measured(row(figures("llama_cpp", 20)), row(figures("other", 40, ttft_ms=30_000)))
    assert choose(AUTO, host, engines()).engine == "llama_cpp"


@pytest.mark.parametrize(
    ("better", "problem"),
    [
        (row(figures("other", 400), is_old=True), None),
        (row(figures("other", 400), replace(AUTO, context_tokens=512)), None),
        (row(figures("other", 400), replace(AUTO, weights=Path("else.gguf"))), None),
        (replace(row(figures("other", 400)), model=ModelId("else")), None),
        (row(figures("other", 400)), "it is not installed"),
        (row(figures("simulated", 400)), None),
    ],
    ids=["version", "context", "weights", "model", "not installed", "simulated"],
)
def test_what_is_no_measure_of_this_does_not_count(better: Measured, problem: str | None) -> None:
    host = measured(better, row(figures("llama_cpp", 20)))
    choice = choose(AUTO, host, engines(problem))
    assert choice.engine == "llama_cpp"
    assert choice.reason.startswith("the only one measured here")


def test_of_two_measurements_of_one_engine_the_newer_counts() -> None:
    host = measured(
        row(figures("other", 900, at=5)),
        row(figures("other", 4, at=9)),
        row(figures("llama_cpp", 20)),
    )
    assert choose(AUTO, host, engines()).engine == "llama_cpp"


def test_a_configured_engine_and_a_url_beat_any_measure() -> None:
    host = measured(row(figures("other", 400)))
    assert choose(replace(AUTO, engine="llama_cpp"), host, engines()).engine == "llama_cpp"
    away = Deployment(model=M, engine="auto", external_url="http://127.0.0.1:1")
    assert choose(away, host, engines()).engine == "external"


def test_a_disturbed_measure_is_said_to_be_one() -> None:
    disturbed = figures("llama_cpp", 40).model_copy(update={"is_disturbed": True})
    assert "disturbed" in choose(AUTO, measured(row(disturbed)), engines()).reason


def test_a_measured_engine_does_not_beat_the_usual_one_that_was_not_measured() -> None:
    choice = choose(AUTO, measured(row(figures("other", 4))), engines())
    assert choice.engine == "llama_cpp"
    assert "other was, which alone decides nothing" in choice.reason
    assert choice.reason.endswith("run `iir-agent bench m`")
    old = row(figures("llama_cpp", 40), is_old=True)
    assert choose(AUTO, measured(old, row(figures("other", 4))), engines()).engine == "llama_cpp"


def test_a_measured_engine_beats_a_usual_one_that_can_t_run_here() -> None:
    host = replace(measured(row(figures("other", 4))), modules=frozenset())
    choice = choose(AUTO, host, engines())
    assert choice.engine == "other"
    assert choice.reason.startswith("the only one measured here")


def test_what_was_not_measured_is_named() -> None:
    host = measured(row(figures("llama_cpp", 20)))
    assert choose(AUTO, host, engines()).reason.endswith("; not measured: other")
    assert "not measured" not in choose(AUTO, host, engines("it is not installed")).reason


def test_figures_of_another_image_are_those_of_another_version() -> None:
    docker = replace(AUTO, engine="vllm_docker", weights=None, options={"repo": "org/name"})
    launch = ENGINES["vllm_docker"].launch(docker, 0)
    assert launch is not None
    assert launch.container is not None
    version = launch.container.image.rpartition(":")[2]
    rows = [
        row(figures("vllm_docker", 3, at=at).model_copy(update={"engine_version": tag}), docker)
        for at, tag in ((2, version), (1, "v0.1.0"))
    ]
    shown = shown_bench(docker, measured(*rows))
    assert [one.is_current for one in shown] == [True, False]


def test_an_engine_that_never_got_to_a_token_is_the_slowest() -> None:
    assert answer_s(figures("other", 0.0)) > answer_s(figures("other", 0.01))


def test_the_table_begins_with_what_serves_now() -> None:
    host = measured(
        row(figures("other", 40, at=9)),
        row(figures("llama_cpp", 10, at=3), replace(AUTO, parallel=1)),
        row(figures("llama_cpp", 20, at=2)),
    )
    shown = shown_bench(replace(AUTO, engine="llama_cpp"), host)
    assert [(one.engine, one.tokens_per_s, one.is_current) for one in shown] == [
        ("llama_cpp", 20, True),
        ("llama_cpp", 10, False),
        ("other", 40, True),
    ]


def test_a_heartbeat_carries_no_more_than_a_few_of_them() -> None:
    old = [
        row(figures("llama_cpp", 1, at=at), replace(AUTO, context_tokens=at)) for at in range(1, 30)
    ]
    shown = shown_bench(replace(AUTO, engine="llama_cpp"), measured(*old, row(figures("other", 2))))
    assert [one.measured_at for one in shown] == [29, 28, 27, 26, 25, 24, 23, 22]


@pytest.mark.parametrize(
    ("host", "installed", "engine"),
    [
        (HOST, {"vllm", "mlx_lm"}, "vllm"),
        (HOST, {"mlx_lm"}, "mlx_lm"),
        (HOST, set(), "vllm"),
        (MAC, {"vllm", "mlx_lm"}, "mlx_lm"),
        (MAC, {"vllm"}, "vllm"),
        (MAC, set(), "mlx_lm"),
    ],
)
def test_a_folder_goes_to_an_engine_that_loads_folders(
    host: HostFacts, installed: set[str], engine: str
) -> None:
    found = engines()
    for name in ("vllm", "mlx_lm"):
        found.register(name)(Other(None if name in installed else "it is not installed"))
    folder = replace(AUTO, weights=Path("qwen"))
    assert choose(folder, host, found).engine == engine


def test_a_folder_of_the_users_is_found_under_auto(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    text = f"known_models: false\nmodels: [{{id: m, source: {tmp_path}}}]"
    config = parse_config(text, {}, name="f", base=tmp_path)
    (found,) = to_deployments(config, WeightStore(tmp_path / "models"))
    assert (found.engine, found.weights) == ("auto", tmp_path)
    able = replace(HOST, environments=frozenset({"vllm"}))
    assert choose(found, able).engine == "vllm"


REPO = {"repo": "org/name"}
METAL_MAC = replace(MAC, has_metal=True)


@pytest.mark.parametrize(
    ("engine", "host", "options", "where"),
    [
        ("llama_cpp", HOST, {}, CPU_ONLY),
        ("llama_cpp", METAL_MAC, {}, METAL),
        ("mlx_lm", METAL_MAC, REPO, METAL),
        ("llama_cpp", METAL_MAC, {"gpu_layers": "0"}, CPU_ONLY),
        ("llama_cpp", replace(MAC, has_metal=False), {}, CPU_ONLY),  # a virtual machine
        ("llama_cpp", MAC, {}, None),  # it could not be asked
        ("torch_mps", METAL_MAC, {}, None),  # torch itself decides
        ("torch_mps", METAL_MAC, {"device": "mps"}, METAL),
        ("torch_mps", METAL_MAC, {"device": "cpu"}, CPU_ONLY),
        ("torch_mps", replace(MAC, has_metal=False), {}, CPU_ONLY),
        ("torch_mps", HOST, {}, CPU_ONLY),
        ("llama_cpp", replace(MAC, arch="x86_64"), {}, CPU_ONLY),
        ("vllm_docker", MAC, REPO, CPU_ONLY),
        ("vllm_docker", MAC, {**REPO, "image": "vllm/vllm-openai:v0.32.0"}, CPU_ONLY),
        ("vllm_docker", HOST, REPO, CPU_ONLY),
        ("vllm_docker", HOST, {**REPO, "image": "vllm/vllm-openai:v0.32.0"}, CUDA),
        ("vllm", HOST, REPO, None),
    ],
)
def test_a_gpu_is_named_only_where_one_computes(
    engine: str, host: HostFacts, options: dict[str, str], where: str | None
) -> None:
    deployment = replace(AUTO, engine=engine, options=options)
    assert device(deployment, ENGINES[engine], host) == where
