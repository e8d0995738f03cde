"""What `iir-agent doctor` says of the container engine and its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local_agent.doctor.containers import examine_containers
from local_agent.doctor.finding import Finding
from local_agent.doctor.models import Plan
from local_agent.domain import HostFacts
from local_agent.ports import ContainerError, ContainerHost
from tests.local_agent.test_doctor import HOST, of_models, planned

VLLM = "{id: v, engine: vllm_docker, options: {repo: org/v}}"
IMAGE = "vllm/vllm-openai-cpu:v0.32.0"


class FakeSurvey:
    """A container engine with these images."""

    def __init__(self, *images: str, memory_mb: int = 16_000) -> None:
        self.images = images
        self.memory_mb = memory_mb
        self.is_closed = False

    def host(self) -> ContainerHost:
        return ContainerHost(
            name="Docker Desktop",
            version="29.1",
            api="1.52",
            source="the Docker context desktop-linux",
            url="unix:///sock",
            memory_mb=self.memory_mb,
        )

    def has_image(self, image: str) -> bool:
        return image in self.images

    def close(self) -> None:
        self.is_closed = True


def of_containers(
    models: list[Plan], survey: FakeSurvey | None = None, host: HostFacts = HOST
) -> list[Finding]:
    def connect() -> FakeSurvey:
        if survey is None:
            raise ContainerError("no container engine was found; start Docker", is_unreachable=True)
        return survey

    return list(examine_containers(models, host, 12_800, connect))


def test_the_container_engine_and_the_image(tmp_path: Path) -> None:
    survey = FakeSurvey(IMAGE)
    engine, image = of_containers(planned(tmp_path, VLLM), survey)
    assert engine.message == (
        "Docker Desktop 29.1 (API 1.52) by the Docker context desktop-linux: unix:///sock, 16000 MiB"
    )
    assert image == Finding("image", "ok", f"{IMAGE} is there")
    assert survey.is_closed


def test_an_image_that_is_missing(tmp_path: Path) -> None:
    _, image = of_containers(planned(tmp_path, VLLM), FakeSurvey())
    missing = f"{IMAGE} is not there; v needs it"
    assert image == Finding("image", "note", missing, "iir-agent pull v")
    _, image = of_containers(
        planned(tmp_path, VLLM.replace("engine", "pin: true, engine")), FakeSurvey()
    )
    assert image.level == "problem"


def test_an_image_that_is_not_allowed_is_the_model_s_problem(tmp_path: Path) -> None:
    model = VLLM.replace("org/v", "org/v, image: mine:1")
    (engine,) = of_containers(planned(tmp_path, model), FakeSurvey())
    assert engine.level == "ok"
    ((level, message, fix),) = of_models(tmp_path, model)
    assert (level, message) == ("problem", "the image mine:1 is not allowed")
    assert "AGENT_IMAGES" in str(fix)
    allowed = replace(HOST, images=frozenset({"mine:1"}))
    _, image = of_containers(planned(tmp_path, model, host=allowed), FakeSurvey("mine:1"))
    assert image.message == "mine:1 is there"


def test_a_virtual_machine_with_less_memory_than_the_budget(tmp_path: Path) -> None:
    model = VLLM.replace("engine", "memory: 9 GiB, engine")
    _, too_big, less, _ = of_containers(planned(tmp_path, model), FakeSurvey(memory_mb=7900))
    assert (too_big.level, too_big.message) == (
        "problem",
        "v takes about 9216 MiB; containers get 7900",
    )
    assert (less.level, less.check) == ("note", "container memory")
    assert "Docker Desktop: Settings" in str(less.fix)


def test_without_a_container_engine(tmp_path: Path) -> None:
    (finding,) = of_containers(planned(tmp_path, VLLM))
    assert finding == Finding(
        "containers", "problem", "no container engine was found", "start Docker"
    )
    (finding,) = of_containers(planned(tmp_path, "{id: s, engine: simulated}"))
    assert finding.level == "note"
    assert finding.message.endswith("no model of yours needs one")
    elsewhere = replace(HOST, container_problem="DOCKER_HOST names another machine; unset it")
    (finding,) = of_containers(planned(tmp_path, VLLM), FakeSurvey(), elsewhere)
    assert (finding.level, finding.fix) == ("problem", "unset it")
