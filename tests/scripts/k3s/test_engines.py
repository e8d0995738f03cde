"""What runs is what profile and values make of it together: engine, gateway, and what these need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.scripts.k3s import fakes
from tests.scripts.k3s.stage import Stage, said

KUBECTL = fakes.PROGRAMS["kubectl"]
ECHO_ALL = 'for one in "$@"; do echo "customresourcedefinition.apiextensions.k8s.io/$one"; done;'


def test_a_profile_that_needs_a_gateway_says_so(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    there = "customresourcedefinition.apiextensions.k8s.io/gateways.gateway.networking.k8s.io"
    stage.says("kubectl", "*get crd*", there)
    assert stage.up("--profile", "gateway-istio") == 1
    err = said(capsys)[1]
    assert "worker_cluster/chart/README.md" in err
    missing = ("httproutes.gateway", "inferencepools.inf", "inferenceobjectives.llm-d.ai")
    assert all(name in err for name in (*missing, "destinationrules.networking.istio.io"))
    assert "gateways.gateway" not in err
    assert stage.ran("upgrade") == []


def test_a_gateway_in_a_cluster_that_has_its_crds_is_installed_and_told_to_be_simulated(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.machine = replace(stage.machine, free_disk_gb=10.0)
    stage.program("kubectl", f'case "$*" in *" get crd "*) {ECHO_ALL} exit 0 ;; esac\n{KUBECTL}')
    assert stage.up("--profile", "gateway-agentgateway") == 0, said(capsys)[1]
    out = said(capsys)[0]
    assert "profile gateway-agentgateway, engine sim" in out
    assert len([line for line in out.splitlines() if line.startswith("SIMULATOR")]) == 2
    assert stage.run("status") == 0
    assert "SIMULATOR" in said(capsys)[0]


def test_a_dry_run_of_a_gateway_says_what_the_cluster_would_need(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    code = stage.run("up", "--dry-run", "--port", str(stage.port), "--profile", "gateway-istio")
    out, err = said(capsys)
    assert code == 0, err
    assert "would need in the cluster: gateways.gateway.networking.k8s.io, httproutes" in out


def test_the_simulator_set_by_hand_needs_no_token_and_no_disk_for_vllm(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.machine = replace(stage.machine, free_disk_gb=10.0)
    stage.env["HF_TOKEN"] = "hf_secret"
    assert stage.up("--profile", "gpu-small", "--set", "engine.type=sim") == 0
    out = said(capsys)[0]
    assert "profile gpu-small, engine sim, engine.type=sim" in out
    assert len([line for line in out.splitlines() if line.startswith("SIMULATOR")]) == 2
    assert not (stage.folder / "applied.0").exists()
