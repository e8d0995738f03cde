from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.devstack.errors import PortTaken
from scripts.devstack.plan import make_plan
from scripts.devstack.ports import free_port, holder, is_free
from scripts.devstack.probes import get, model_status
from scripts.devstack.text import curl, ready_text, snippet

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` of the checkout, no variable of the shell."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "ROUTER_HOST",
        "AGENT_HOST",
        "ROUTER_DRAIN_S",
        "AGENT_DRAIN_S",
        "AGENT_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROUTER_PORT", "0")
    monkeypatch.setenv("AGENT_PORT", "0")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_a_taken_port_is_not_free_and_its_holder_is_named(taken: int) -> None:
    assert not is_free(HOST, taken)
    assert free_port(HOST, taken) != taken
    assert f"(pid {os.getpid()})" in (holder(taken) or "")


def test_a_free_port_is_free() -> None:
    port = free_port(HOST)
    assert is_free(HOST, port)
    assert holder(port) is None


def test_the_plan_hands_the_chosen_ports_to_the_children(tmp_path: Path) -> None:
    plan = make_plan()
    environment = plan.environment
    assert plan.router_url == f"http://127.0.0.1:{environment['ROUTER_PORT']}"
    assert environment["ROUTER_URL"] == plan.router_url
    assert plan.agent_url == f"http://127.0.0.1:{environment['AGENT_PORT']}"
    assert environment["AGENT_TOKEN_FILE"] == str(tmp_path / "home" / "agent" / "credential")
    assert environment["AGENT_DRAIN_S"] == "2"


def test_a_drain_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_DRAIN_S", "50")
    assert make_plan().environment["AGENT_DRAIN_S"] == "50"


@pytest.mark.parametrize("variable", ["ROUTER_PORT", "AGENT_PORT"])
def test_a_taken_port_names_the_holder_and_the_line_that_helps(
    monkeypatch: pytest.MonkeyPatch, taken: int, variable: str
) -> None:
    monkeypatch.setenv(variable, str(taken))
    with pytest.raises(PortTaken) as failure:
        make_plan()
    text = str(failure.value)
    assert f"port {taken} is taken by" in text
    suggested = int(text.rsplit(f"{variable}=", 1)[1].split(maxsplit=1)[0])
    assert text.endswith("make dev")
    assert is_free(HOST, suggested)


def test_all_interfaces_are_reached_by_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_HOST", "0.0.0.0")
    plan = make_plan()
    assert plan.environment["ROUTER_HOST"] == "0.0.0.0"
    assert plan.router_url.startswith("http://127.0.0.1:")


async def test_a_probe_of_a_closed_port_is_status_0() -> None:
    assert await get(f"http://{HOST}:{free_port(HOST)}/readyz") == (0, None)


@pytest.mark.parametrize(
    ("listing", "status"),
    [
        ({"data": [{"id": "x"}, {"id": "m", "status": {"value": "loaded"}}]}, "loaded"),
        ({"data": []}, "absent"),
        ({"data": ["?"]}, "absent"),
        ({"data": None}, "absent"),
        (None, "absent"),
    ],
)
def test_model_status(listing: object, status: str) -> None:
    assert model_status(listing, "m") == status


def test_the_ready_text_starts_with_the_line_that_programs_wait_for(tmp_path: Path) -> None:
    text = ready_text(
        tmp_path, "http://127.0.0.1:8000", needs_key=False, has_model=True, stop="Ctrl-C"
    )
    lines = text.splitlines()
    assert lines[0] == "ready: http://127.0.0.1:8000/v1"
    assert curl("http://127.0.0.1:8000") in lines
    assert snippet("http://127.0.0.1:8000") in text
    assert len(snippet("http://127.0.0.1:8000").splitlines()) == 3
    assert "iir-agent pull local_mistral-7b-instruct-q4" in text
    assert lines[-1] == "stop: Ctrl-C"


def test_with_keys_in_force_the_lines_have_a_place_for_one(tmp_path: Path) -> None:
    text = ready_text(tmp_path, "http://h:1", needs_key=True, has_model=True, stop="make down")
    assert text.count("YOUR_KEY") == 2
    assert "iir keys create" in text


def test_without_the_model_the_text_says_so(tmp_path: Path) -> None:
    text = ready_text(tmp_path, "http://h:1", needs_key=False, has_model=False, stop="Ctrl-C")
    assert "The embedded model is not there" in text
