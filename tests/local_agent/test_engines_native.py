"""The engines with an environment that the agent installs: command lines, refusals, what is pinned."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_agent.catalog import catalog
from local_agent.config_file import ConfigError, parse_config, to_deployments
from local_agent.domain import Deployment, EngineLoad, HostFacts, ModelId
from local_agent.engines import ENGINES
from local_agent.environments import recipe_of
from local_agent.ports import Launch, Recipe
from local_agent.process import LocalProcessLauncher
from local_agent.pulls.puller import NotToPull, needed
from local_agent.settings import load_settings
from local_agent.weights.store import WeightStore

NAMES = ("mlx_lm", "torch_mps", "vllm_metal", "vllm_mlx")
ALL = frozenset(NAMES)
FOLDER = Path("/somewhere/models/qwen")
MAC = HostFacts(platform="darwin", arch="arm64", memory_mb=16_000, environments=ALL)
INTEL_MAC = replace(MAC, arch="x86_64")
LINUX = replace(MAC, platform="linux", arch="x86_64")
_EXACT = re.compile(r"[a-z_-]+(\[cpu\])?==[\d.]+(dev\d+)?|vllm @ https://github\.com/\S+\.whl")


def deployment(engine: str, weights: Path | None = FOLDER, **options: str) -> Deployment:
    return Deployment(
        model=ModelId("org/m"), engine=engine, weights=weights, parallel=3, options=options
    )


def launched(engine: str, **options: str) -> Launch:
    launch = ENGINES[engine].launch(deployment(engine, FOLDER, **options), 4321)
    assert launch is not None
    return launch


def words(launch: Launch) -> str:
    """Return the command line without what runs our programs."""
    argv = list(launch.argv)
    assert argv[:3] == ["-I", "-B", "-u"]
    if argv[3] == "-c":
        assert Path(argv[5]).name == "programs"
        argv[3:6] = ["RUN"]
    return " ".join(argv[3:])


@pytest.mark.parametrize(
    ("engine", "options", "line"),
    [
        (
            "mlx_lm",
            {"max_tokens": "2048", "prompt_cache_entries": "4"},
            (
                "RUN iir_mlx --name org/m --model ./qwen --host 127.0.0.1 --port 4321"
                " --decode-concurrency 3 --prompt-concurrency 3 --log-level WARNING"
                " --max-tokens 2048 --prompt-cache-size 4"
            ),
        ),
        (
            "torch_mps",
            {"device": "cpu", "dtype": "float32", "threads": "2"},
            (
                "RUN iir_torch --name org/m --model ./qwen --port 4321 --context-tokens 4096"
                " --max-prompt-tokens 4096 --device cpu --dtype float32 --threads 2"
            ),
        ),
        (
            "vllm_mlx",
            {"tool_parser": "hermes"},
            (
                "-m vllm_mlx.cli serve ./qwen --served-model-name org/m --host 127.0.0.1 --port 4321"
                " --offline --continuous-batching --max-num-seqs 3 --enable-metrics"
                " --enable-auto-tool-choice --tool-call-parser hermes"
            ),
        ),
        (
            "vllm_metal",
            {"dtype": "float16"},
            (
                "-m vllm.entrypoints.openai.api_server --model ./qwen --host 127.0.0.1 --port 4321"
                " --served-model-name org/m --max-model-len 4096 --max-num-seqs 3 --dtype float16"
            ),
        ),
    ],
)
def test_it_serves_one_folder_on_loopback_without_a_network(
    engine: str, options: dict[str, str], line: str
) -> None:
    launch = launched(engine, **options)
    assert words(launch) == line
    assert launch.cwd == "/somewhere/models"  # so that no log and no error holds a path
    assert launch.environment == engine
    assert launch.env["HF_HUB_OFFLINE"] == "1"
    assert not any("TOKEN" in name and "TOKENIZERS" not in name for name in launch.env)


def test_the_size_at_which_mps_stalls_can_be_set() -> None:
    assert "--max-prompt-tokens 9000" in words(launched("torch_mps", max_prompt_tokens="9000"))


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize(
    ("weights", "options", "reason"),
    [
        (FOLDER, {}, None),
        (FOLDER, {"repo": "Org/M"}, None),
        (None, {}, "needs as source a folder of this host"),
        (Path("/models/m/m.gguf"), {}, "for GGUF use engine llama_cpp"),
        (None, {"repo": "--trust-remote-code/x"}, "must be a repository"),
        (FOLDER, {"python": "/bin/sh"}, "has no option python"),
        (FOLDER, {"args": "--trust-remote-code"}, "has no option args"),
    ],
)
def test_what_is_allowed(
    engine: str, weights: Path | None, options: dict[str, str], reason: str | None
) -> None:
    found = ENGINES[engine].unsupported_reason(MAC, deployment(engine, weights, **options))
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize(
    ("engine", "host", "reason"),
    [
        ("mlx_lm", LINUX, None),
        ("mlx_lm", INTEL_MAC, "not one under Rosetta"),
        ("torch_mps", LINUX, None),
        ("torch_mps", INTEL_MAC, "no packages for Macs without Apple Silicon"),
        ("vllm_mlx", LINUX, "vllm-mlx runs on Apple Silicon only; here use engine mlx_lm or vllm"),
        ("vllm_mlx", INTEL_MAC, "Apple Silicon only"),
        ("vllm_metal", LINUX, "vllm-metal runs on Apple Silicon only; here use engine vllm"),
        ("vllm_metal", INTEL_MAC, "Apple Silicon only"),
    ],
)
def test_what_a_host_can_not_do_is_said(engine: str, host: HostFacts, reason: str | None) -> None:
    found = ENGINES[engine].unsupported_reason(host, deployment(engine))
    assert found is None if reason is None else reason in (found or "")
    assert isinstance(recipe_of(ENGINES[engine], host), Recipe if reason is None else str)


def test_there_is_mps_on_macs_only() -> None:
    wanted = deployment("torch_mps", device="mps")
    assert ENGINES["torch_mps"].unsupported_reason(MAC, wanted) is None
    assert "Macs only" in (ENGINES["torch_mps"].unsupported_reason(LINUX, wanted) or "")


@pytest.mark.parametrize("engine", NAMES)
def test_one_that_is_not_installed_is_unavailable_with_its_command(engine: str) -> None:
    bare = replace(MAC, environments=frozenset())
    entry = catalog([deployment(engine)], ENGINES, bare).entries[ModelId("org/m")]
    assert f"install it: iir-agent engines install {engine}" in (entry.problem or "")
    assert catalog([deployment(engine)], ENGINES, MAC).entries[ModelId("org/m")].problem is None


@pytest.mark.parametrize("engine", NAMES)
def test_what_is_installed_is_pinned(engine: str) -> None:
    for host in (MAC, LINUX):
        recipe = recipe_of(ENGINES[engine], host)
        if isinstance(recipe, Recipe):
            assert all(_EXACT.fullmatch(each) for each in recipe.requirements), recipe
    for other in ("llama_cpp", "external", "simulated", "vllm_docker"):
        assert recipe_of(ENGINES[other], MAC) is None


@pytest.mark.parametrize(
    ("engine", "metrics", "load"),
    [
        ("mlx_lm", "anything 3\n", EngineLoad()),
        (
            "torch_mps",
            "iir_torch_requests_running 1\niir_torch_requests_waiting 2\n",
            EngineLoad(running=1, waiting=2),
        ),
        (
            "vllm_mlx",
            "vllm_mlx_scheduler_running_requests 2.0\nvllm_mlx_scheduler_waiting_requests 1.0\n",
            EngineLoad(running=2, waiting=1),
        ),
        (
            "vllm_metal",
            'vllm:num_requests_running{engine="0"} 4.0\nvllm:num_requests_waiting 3.0\n',
            EngineLoad(running=4, waiting=3),
        ),
    ],
)
def test_the_load_is_read_where_it_is_told(engine: str, metrics: str, load: EngineLoad) -> None:
    assert ENGINES[engine].parse_load(metrics) == load


@pytest.mark.parametrize("engine", NAMES)
def test_the_file_names_a_folder_or_a_repository(tmp_path: Path, engine: str) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").touch()
    store = WeightStore(tmp_path / "models")

    def parsed(fields: str) -> Deployment:
        text = f"{{known_models: false, models: [{{id: m, engine: {engine}, {fields}}}]}}"
        config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
        (found,) = to_deployments(config, store)
        return found

    assert parsed("source: ./qwen").weights == tmp_path / "qwen"
    repository = parsed("options: {repo: a/b}")
    assert repository.weights is None
    assert ENGINES[engine].needs_weights(repository)
    with pytest.raises(ConfigError, match=f"engine {engine} takes a `source` or the option `repo`"):
        parsed("source: ./qwen, options: {repo: a/b}")
    with pytest.raises(ConfigError, match=f"repo of engine {engine} must be a repository"):
        parsed("options: {repo: nobody}")


def test_a_known_model_can_be_turned_to_mlx(tmp_path: Path) -> None:
    repo = "mlx-community/Mistral-7B-Instruct-v0.3-4bit"
    text = (
        f"models: [{{id: local_mistral-7b-instruct-q4, engine: mlx_lm, options: {{repo: {repo}}}}}]"
    )
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    model = ModelId("local_mistral-7b-instruct-q4")
    assert needed(config, WeightStore(tmp_path), MAC, model).repo == repo
    with pytest.raises(NotToPull, match="iir-agent engines install mlx_lm"):
        needed(config, WeightStore(tmp_path), replace(MAC, environments=frozenset()), model)


def test_environments_in_the_making_are_not_seen(tmp_path: Path) -> None:
    for name in ("mlx_lm", ".made/torch_mps-1", ".hidden"):
        place = tmp_path / "engines" / name / "bin" / "python"
        place.parent.mkdir(parents=True)
        place.symlink_to(sys.executable)
    (tmp_path / "engines" / "half").mkdir()
    found = load_settings(iir_home=tmp_path).interpreters
    assert found == {"mlx_lm": str(tmp_path / "engines" / "mlx_lm" / "bin" / "python")}


async def test_one_that_was_removed_meanwhile_is_not_started(tmp_path: Path) -> None:
    launcher = LocalProcessLauncher(
        run_dir=tmp_path / "run", log_dir=tmp_path / "logs", env={}, interpreters={}
    )
    with pytest.raises(FileNotFoundError, match="not installed any more"):
        await launcher.launch("m", launched("mlx_lm"), config_hash="h", port=7)
    assert list((tmp_path / "run").glob("*.json")) == []
