"""The command: its options, the registries it makes, and a whole quick run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import native
from benchmarks.__main__ import main
from benchmarks.measure import write_bodies
from benchmarks.processes import BenchError, plain_environment
from benchmarks.registry import MODEL, fill_registry, make_registry
from benchmarks.targets import Missing, Site, litellm, vllm_router
from router.domain import ModelName
from router.store.catalog import list_models, list_providers
from router.store.reader import RegistryReader

ROOT = Path(__file__).parents[2]


def test_bodies_have_the_sizes_that_the_figures_name(tmp_path: Path) -> None:
    bodies = write_bodies(tmp_path)
    assert 150 < bodies.small.stat().st_size < 200
    assert 100_000 < bodies.big.stat().st_size < 110_000
    assert b'"stream":true' in bodies.stream.read_bytes()


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--rounds", "0"], ["--seconds", "0"]])
def test_options_that_make_no_sense_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert wrong[0].strip("-") in capsys.readouterr().err or "target" in wrong[1]


def test_a_peer_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("VLLM_ROUTER", "LITELLM"):
        monkeypatch.delenv(variable, raising=False)
    for make in (vllm_router, litellm):
        assert isinstance(make(Site(tmp_path, [1])), Missing)


def test_a_registry_can_be_filled_with_thousands_of_models(tmp_path: Path) -> None:
    env = plain_environment({"IIR_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert make_registry(tmp_path, env, [1, 2]).startswith("sk-iir-")
    fill_registry(tmp_path, 1, model_count=2_000, endpoint_count=100)
    reader = RegistryReader(f"sqlite:///{tmp_path / 'models.db'}")
    models = {model.id: model for model in reader.run(list_models)}
    providers = reader.run(list_providers)
    reader.close()
    assert len(models) == 2_001
    assert len(models[ModelName(MODEL)].deployments) == 2
    assert len([p for p in providers if p.name.startswith("filler-")]) == 100


def test_without_a_compiler_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="no C compiler"):
        native.build(tmp_path / "cache")


@pytest.mark.integration
@pytest.mark.skipif(not native.has_compiler(), reason=native.NO_COMPILER)
def test_a_quick_run_ends_well_and_prints_its_table() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "direct,router"]
    done = subprocess.run(
        [*command, "--no-write"], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| figure | direct | router |" in done.stdout
    assert "| CPU per request, c16 |" in done.stdout
