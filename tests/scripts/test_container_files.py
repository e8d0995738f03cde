"""Dockerfiles, compose files and locks: what they promise without an engine to run them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from local_agent.settings import AgentSettings
from router.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = ["router/Dockerfile", "local_agent/Dockerfile"]
COMPOSE_FILES = sorted(path.name for path in ROOT.glob("docker-compose*.yml"))
LOCKS = ["agent", "router", "build"]


def dockerfile(name: str) -> list[str]:
    """Return its instructions, continued lines joined and comments left out."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def services() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in COMPOSE_FILES:
        for service, values in compose(name)["services"].items():
            yield name, service, values


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes by package."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split("--hash=")
            package, _, version = pin.partition("==")
            found[package.strip()] = (version.strip(), [h.strip() for h in hashes])
    return found


def project_requirements(extra: str | None) -> list[Requirement]:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    found = re.findall(r'"([^"]+)"', listed[1])
    if extra is not None:
        optional = re.search(rf"^{extra} = \[(.*?)\]", text, re.MULTILINE)
        assert optional is not None
        found += re.findall(r'"([^"]+)"', optional[1])
    return [Requirement(one) for one in found]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_built_from_the_slim_base_in_two_stages_without_anything_newer(
    name: str,
) -> None:
    lines = dockerfile(name)
    bases = [line for line in lines if line.startswith("FROM ")]
    assert bases == ["FROM python:3.12-slim AS build", "FROM python:3.12-slim"]
    text = (ROOT / name).read_text()
    assert not re.search(r"^# *syntax=", text, re.MULTILINE | re.IGNORECASE)
    assert "<<" not in text
    assert not re.search(r"\bpip install\b|--mount|--chmod|--start-interval", text)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_nobody_in_particular_and_says_how_it_is(name: str) -> None:
    lines = dockerfile(name)
    final = lines[lines.index("FROM python:3.12-slim") :]
    assert "USER 10001:10001" in final
    assert final.index("USER 10001:10001") < [line.split()[0] for line in final].index("ENTRYPOINT")
    assert any(line.startswith("HEALTHCHECK ") for line in final)
    assert "STOPSIGNAL SIGTERM" in final
    assert 'CMD ["serve"]' in final
    assert any(line.startswith("COPY LICENSE") for line in final)
    (label,) = [line for line in final if line.startswith("LABEL ")]
    for key in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{key}=" in label
    copied = [line for line in final if line.startswith("COPY ")]
    assert [line for line in copied if "--from=build" in line] == [
        "COPY --from=build /opt/iir /opt/iir"
    ]


def test_both_images_run_as_the_same_user_since_they_share_a_volume() -> None:
    users = [
        [line for line in dockerfile(name) if line.startswith(("USER", "RUN groupadd"))][-1:]
        for name in DOCKERFILES
    ]
    assert users[0] == users[1]


def test_only_what_the_images_need_gets_to_the_engine() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line.strip("!/") for line in rules if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for name in DOCKERFILES
        for line in dockerfile(name)
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert allowed == copied
    assert not any(line.startswith("!") for line in rules[rules.index("**/__pycache__") :])


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_versions_and_hashes_and_no_place(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(
        r"^(-i|--(extra-)?index-url|--find-links|--trusted-host)", text, re.MULTILINE
    )
    found = locked(name)
    assert found
    for package, (version, hashes) in found.items():
        assert re.fullmatch(r"[0-9][A-Za-z0-9.+!]*", version), package
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), package


@pytest.mark.parametrize(("name", "extra"), [("router", None), ("agent", "llama")])
def test_the_locks_are_within_the_projects_bounds(name: str, extra: str | None) -> None:
    versions = {package: version for package, (version, _) in locked(name).items()}
    outside = [
        str(wanted)
        for wanted in project_requirements(extra)
        if not wanted.specifier.contains(versions.get(canonicalize_name(wanted.name), "0"))
    ]
    assert outside == [], "run `make lock`"


def test_both_images_have_the_same_versions_and_the_router_no_engine() -> None:
    router, agent = locked("router"), locked("agent")
    assert router.items() <= agent.items()
    assert agent.keys() - router.keys() == {"pip", "xllamacpp"}


def test_only_loopback_ports_are_published_unless_tls_is_asked_for() -> None:
    published = [
        (service, port) for _, service, values in services() for port in values.get("ports", [])
    ]
    assert {service for service, _ in published} == {"router", "sim", "prometheus", "tls"}
    for service, port in published:
        prefix = "${TLS_ADDRESS:-127.0.0.1}:" if service == "tls" else "127.0.0.1:"
        assert port.startswith(prefix), service


def test_every_container_is_confined() -> None:
    for name, service, values in services():
        if "image" not in values:
            continue  # an override
        assert values["read_only"] is True, service
        assert values["cap_drop"] == ["ALL"], service
        assert values["security_opt"] == ["no-new-privileges:true"], service
        assert values["restart"] == "unless-stopped", service
        assert not values.get("privileged"), service
        assert "network_mode" not in values, service
        assert name == "docker-compose.yml" or service == "tls"


def test_only_the_siblings_override_gives_the_engines_socket_away() -> None:
    for name in COMPOSE_FILES:
        has_socket = "docker.sock" in (ROOT / name).read_text()
        assert has_socket == (name == "docker-compose.siblings.yml")
    agent = compose("docker-compose.siblings.yml")["services"]["agent"]
    assert agent["environment"]["AGENT_IMAGES"] == "${AGENT_IMAGES:-}"
    network = agent["environment"]["AGENT_WORKER_NETWORK"]
    assert compose("docker-compose.siblings.yml")["networks"]["workers"]["name"] == network


def test_state_lies_in_named_volumes() -> None:
    for name in COMPOSE_FILES:
        declared = set(compose(name).get("volumes") or {})
        for service, values in compose(name)["services"].items():
            for volume in values.get("volumes", []):
                # what may be set counts by its default
                source = re.sub(r"^\$\{[A-Z_]+:-([^}]+)\}", r"\1", volume).partition(":")[0]
                is_ours = source.startswith("./deploy/") and volume.endswith(":ro")
                assert source in declared or is_ours or "docker.sock" in volume, (service, volume)


def test_what_is_there_only_when_asked_for_is_in_a_profile() -> None:
    profiles = {name: values.get("profiles") for name, values in compose()["services"].items()}
    assert profiles == {
        "router": None,
        "agent": None,
        "redis": ["redis"],
        "sim": ["sim"],
        "prometheus": ["prometheus"],
    }


def test_compose_waits_longer_than_a_drain() -> None:
    found = compose()["services"]
    for service, settings, name in (
        ("router", Settings, "router_drain_s"),
        ("agent", AgentSettings, "agent_drain_s"),
    ):
        grace_s = int(found[service]["stop_grace_period"].removesuffix("s"))
        assert grace_s > settings.model_fields[name].default
        default = found[service]["environment"][name.upper()]
        assert default == f"${{{name.upper()}:-{settings.model_fields[name].default:g}}}"


@pytest.mark.parametrize(("service", "settings"), [("router", Settings), ("agent", AgentSettings)])
def test_what_compose_sets_exists_and_paths_of_the_host_stay_outside(
    service: str, settings: type[Settings | AgentSettings]
) -> None:
    environment = compose()["services"][service]["environment"]
    known = {name.upper() for name in settings.model_fields}
    assert set(environment) - known <= {"EXTERNAL_OPENAI_KEY", "PIP_INDEX_URL"}
    paths = {
        name.upper()
        for name, field in settings.model_fields.items()
        if "Path" in str(field.annotation)
    }
    assert paths <= set(environment), "what .env says of a path holds outside a container only"
    assert compose()["services"][service]["env_file"] == [{"path": ".env", "required": False}]


def test_the_agents_secrets_are_its_own() -> None:
    assert compose()["services"]["agent"]["environment"]["EXTERNAL_OPENAI_KEY"] == ""


def test_names_of_compose_are_known_to_both() -> None:
    found = compose()["services"]
    router, agent = found["router"]["environment"], found["agent"]["environment"]
    assert agent["AGENT_URL"] == "http://agent:5000"
    assert agent["ROUTER_URL"] == "http://router:8000"
    assert "agent" in router["ROUTER_AGENT_HOSTS"].split(",")
    assert "host.docker.internal" in router["ROUTER_AGENT_HOSTS"].split(",")
    assert "router" in router["ROUTER_ALLOWED_HOSTS"].split(",")
    # one volume, in which one makes the credential and the other reads it
    assert router["ROUTER_AGENT_TOKEN_FILE"] == "/agent/credential"
    assert agent["AGENT_TOKEN_FILE"] == "/data/agent/credential"
    assert "agent:/agent" in found["router"]["volumes"]
    assert "agent:/data/agent" in found["agent"]["volumes"]
