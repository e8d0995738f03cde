"""Which cluster and profile a machine gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.k3s.chart import FOLDER, Chart
from scripts.k3s.choice import Choice, Wish, choose_cluster, choose_profile
from scripts.k3s.errors import ClusterError
from scripts.k3s.machine import Machine, look
from scripts.k3s.quantity import doubled, gib, halved
from tests.scripts.k3s import fakes
from tests.scripts.k3s.stage import GPU, INSTALL, ROOT, Stage

PLAIN = Machine(
    system="Linux", gpus=(), docker_answers=True, free_disk_gb=100.0, search_path="/nowhere"
)
BOX = replace(PLAIN, gpus=(GPU,))
MAC = replace(PLAIN, system="Darwin")
BARE = replace(PLAIN, docker_answers=False)
CHART = Chart(ROOT / FOLDER)


def cluster_for(wish: Wish, machine: Machine) -> Choice:
    return choose_cluster(wish, machine, None, CHART, lambda: INSTALL)


@pytest.mark.parametrize(
    ("machine", "wish", "driver", "profile"),
    [
        (PLAIN, Wish(), "k3d", "cpu"),
        (BARE, Wish(), "native", "cpu"),
        (BOX, Wish(), "native", "gpu-small"),
        (MAC, Wish(), "k3d", "cpu"),
        (BOX, Wish(profile="sim"), "k3d", "sim"),
        (BOX, Wish(profile="gpu-pd"), "native", "gpu-pd"),
        (BOX, Wish(driver="k3d"), "k3d", "cpu"),
        (BOX, Wish(driver="native", profile="cpu"), "native", "cpu"),
        (PLAIN, Wish(profile="sim"), "k3d", "sim"),
        (BOX, Wish(sets=("engine.type=sim",)), "k3d", "cpu"),
        (BOX, Wish(profile="cpu", sets=("engine.type=vllm",)), "native", "cpu"),
        (BOX, Wish(profile="gateway-istio"), "k3d", "gateway-istio"),
        (PLAIN, Wish(profile="gpu-pd", sets=("engine.type=sim",)), "k3d", "gpu-pd"),
    ],
)
def test_driver_and_profile_follow_the_machine_and_the_wish(
    machine: Machine, wish: Wish, driver: str, profile: str
) -> None:
    cluster = cluster_for(wish, machine)
    gpus = len(machine.gpus) if cluster.driver == "native" else 0
    choice = choose_profile(wish, machine, cluster, gpus, CHART)
    assert (choice.driver, choice.profile) == (driver, profile)


@pytest.mark.parametrize("machine", [PLAIN, BARE, BOX, MAC])
def test_nobody_gets_the_simulator_without_asking(machine: Machine) -> None:
    cluster = cluster_for(Wish(), machine)
    for gpus in (0, 1):
        assert choose_profile(Wish(), machine, cluster, gpus, CHART).profile != "sim"


def test_a_mac_without_docker_hears_what_to_do() -> None:
    with pytest.raises(
        ClusterError, match=r"Start Docker[^\0]*--driver existing --kubeconfig FILE"
    ):
        cluster_for(Wish(), replace(MAC, docker_answers=False))


@pytest.mark.parametrize(
    ("machine", "wish", "words"),
    [
        (PLAIN, Wish(profile="gpu-small"), "--profile cpu"),
        (BOX, Wish(driver="k3d", profile="gpu-small"), "--driver native --profile gpu-small"),
        (PLAIN, Wish(profile="gpu-huge"), "There are: cpu, gateway"),
        (replace(PLAIN, free_disk_gb=10.0), Wish(), "--profile sim"),
        (PLAIN, Wish(profile="cpu", sets=("engine.type=vllm",)), "--profile cpu --forget"),
        (
            BOX,
            Wish(driver="k3d", profile="gateway-istio", sets=("engine.type=vllm",)),
            "--driver native --profile gateway-istio --set engine.type=vllm",
        ),
    ],
)
def test_a_profile_that_cannot_run_is_refused_with_what_can(
    machine: Machine, wish: Wish, words: str
) -> None:
    with pytest.raises(ClusterError, match=words):
        choose_profile(wish, machine, cluster_for(wish, machine), 0, CHART)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(profile="sim"),
        Wish(profile="gateway-istio"),
        Wish(profile="gpu-small", sets=("engine.type=sim",)),
    ],
)
def test_the_simulator_needs_little_disk(wish: Wish) -> None:
    small = replace(PLAIN, free_disk_gb=10.0)
    assert choose_profile(wish, small, cluster_for(wish, small), 0, CHART)


def test_another_profile_forgets_the_values_of_the_one_before() -> None:
    wish = Wish(profile="cpu", sets=("model.name=a/b",))
    first = choose_profile(wish, PLAIN, cluster_for(wish, PLAIN), 0, CHART)
    assert choose_profile(Wish(), PLAIN, first, 0, CHART).sets == ("model.name=a/b",)
    assert choose_profile(Wish(profile="sim"), PLAIN, first, 0, CHART).sets == ()


def test_the_machine_is_asked_by_its_own_programs(stage: Stage) -> None:
    found = look(stage.env, stage.folder)
    assert found.gpus == ()
    assert found.docker_answers
    stage.program("nvidia-smi", fakes.NVIDIA_SMI)
    stage.says("nvidia-smi", "--query-gpu=memory.total*", "81920\n23034\n")
    stage.says("docker", "info*", error="Cannot connect to the Docker daemon", code=1)
    found = look(stage.env, stage.folder)
    assert found.gpus == (GPU,)
    assert found.gpu_memory_gib == 22.4
    assert not found.docker_answers
    assert found.has("helm")
    stage.says("nvidia-smi", "-L", "NVIDIA-SMI has failed\n", code=9)
    assert look(stage.env, stage.folder).gpus == ()


def test_quantities() -> None:
    assert [doubled(one) for one in ("16Gi", "512Mi", "1.5G", "2000")] == [
        "32Gi",
        "1024Mi",
        "3G",
        "4000",
    ]
    assert [halved(one) for one in ("8Gi", "5Gi", "2000")] == ["4Gi", "2.5Gi", "1000"]
    assert gib("16Gi") == 16
    assert gib("33554432Ki") == 32
    assert gib("lots") == 0
    assert doubled("lots") == ""
