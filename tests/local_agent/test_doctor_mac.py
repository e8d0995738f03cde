"""What the doctor says on a Mac: each check with an output on which it fires, and one on which it must not."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from local_agent.containers.contexts import DockerContext, parse_contexts
from local_agent.control.trust import failure_code
from local_agent.doctor.agent import RunningState
from local_agent.doctor.containers import dead_context
from local_agent.doctor.finding import Finding
from local_agent.doctor.host import examine_disk
from local_agent.doctor.mac import MacFacts, examine_mac, mac_facts, shown
from local_agent.doctor.router import examine_router
from local_agent.host.tools import MAC_TOOLS, ask
from local_agent.settings import load_settings
from shared.kit.clock import wall_time
from tests.local_agent import macos_outputs as outputs
from tests.local_agent.test_doctor import HOST, planned
from tests.local_agent.test_doctor_containers import VLLM, FakeSurvey, of_containers

PYTHON = Path("/Users/me/app/.venv/bin/python")
LAN = "http://192.168.0.103:3001"


def asked(**answers: str) -> Callable[[Sequence[str]], str | None]:
    """Return a Mac whose tools print these, and nothing else."""
    by_path = {MAC_TOOLS[name]: text for name, text in answers.items()}
    return lambda argv: by_path.get(argv[0])


def of_mac(python_arch: str = "arm64", **answers: str) -> dict[str, Finding]:
    facts = mac_facts(python_arch, [PYTHON], asked(**answers))
    return {found.check: found for found in examine_mac(facts)}


# -- Rosetta -------------------------------------------------------------------------------------


def test_an_intel_python_on_apple_silicon() -> None:
    found = of_mac("x86_64", sysctl=outputs.ARM64)["python"]
    assert found.level == "problem"
    assert "Rosetta" in found.message
    assert "PYTHON=/opt/homebrew/bin/python3.13 make setup" in str(found.fix)


@pytest.mark.parametrize(
    ("arch", "answers"),
    [
        ("arm64", {"sysctl": outputs.ARM64}),
        ("x86_64", {}),  # an Intel Mac: sysctl knows no such name, see outputs.SYSCTL_UNKNOWN
    ],
)
def test_a_native_python(arch: str, answers: dict[str, str]) -> None:
    assert of_mac(arch, **answers)["python"] == Finding("python", "ok", f"native ({arch})")


# -- the GPU -------------------------------------------------------------------------------------


def test_a_mac_without_a_gpu() -> None:
    found = of_mac(system_profiler=outputs.GPU_NONE)["gpu"]
    assert found.level == "note"
    assert "engines compute on the CPU" in found.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (outputs.GPU_M4, "Apple M4 (Metal: Metal 3)"),
        (
            outputs.GPU_INTEL,
            "Radeon Pro Vega 64 (Metal: Supported, feature set macOS GPUFamily2 v1)",
        ),
    ],
)
def test_a_gpu_with_metal(text: str, told: str) -> None:
    assert of_mac(system_profiler=text)["gpu"] == Finding("gpu", "ok", told)


# -- quarantine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "by"), [(outputs.XATTR_QUARANTINE, "Firefox"), (outputs.XATTR_SAFARI, "Safari")]
)
def test_a_program_in_quarantine(text: str, by: str) -> None:
    found = of_mac(xattr=text)["quarantine"]
    assert found.level == "problem"
    assert f"was put into quarantine by {by}" in found.message
    assert str(found.fix).endswith(f"xattr -d com.apple.quarantine {PYTHON}")


@pytest.mark.parametrize(
    "text", ["", outputs.XATTR_NONE, outputs.XATTR_SAFARI.partition("com.apple.quarantine")[0]]
)
def test_a_program_that_is_not(text: str) -> None:
    assert "quarantine" not in of_mac(xattr=text)


def test_a_path_can_be_pasted_into_a_shell() -> None:
    found = shown(Path.home() / "Library" / "Application Support" / "iir" / "python")
    assert found == "~/'Library/Application Support/iir/python'"
    assert shown(Path("/opt/a b/python")) == "'/opt/a b/python'"


# -- tools ---------------------------------------------------------------------------------------


def facts(*missing: str) -> MacFacts:
    return MacFacts(
        is_apple_silicon=True, python_arch="arm64", gpus=(), attributes={}, missing_tools=missing
    )


def test_a_tool_that_is_missing_is_told_with_what_it_costs() -> None:
    (found,) = (one for one in examine_mac(facts("pmset")) if one.check == "tools")
    assert found.message == (
        "/usr/bin/pmset is not there: whether it runs on its battery is unknown"
    )
    assert not [one for one in examine_mac(facts()) if one.check == "tools"]


def test_programs_that_are_not_there_or_fail_tell_nothing(tmp_path: Path) -> None:
    assert ask((str(tmp_path / "none"),)) is None
    assert ask(("/bin/sh", "-c", "echo half; exit 3")) is None
    assert ask(("/bin/sh", "-c", "exec cat")) == ""  # it gets no input to wait for
    assert ask(("/bin/sh", "-c", 'printf %s "$IIR_HOME$HF_TOKEN$LC_ALL"')) == "C"


def test_a_program_that_hangs_is_given_up() -> None:
    assert ask(("/bin/sh", "-c", "while :; do :; done"), timeout_s=0.1) is None


# -- containers ----------------------------------------------------------------------------------

MAC = HOST.__class__(platform="darwin", arch="arm64", memory_mb=16_000, modules=HOST.modules)


def test_a_container_on_a_mac_computes_on_the_cpu(tmp_path: Path) -> None:
    models = planned(tmp_path, VLLM, host=MAC)
    told = [one for one in of_containers(models, FakeSurvey(), MAC) if one.check == "container gpu"]
    assert [one.level for one in told] == ["note"]
    assert told[0].message == (
        "v runs in a container: CPU only, since containers have no Metal on a Mac"
    )


def test_elsewhere_or_without_such_a_model_it_is_not_said(tmp_path: Path) -> None:
    linux = of_containers(planned(tmp_path, VLLM), FakeSurvey())
    without = of_containers([], FakeSurvey(), MAC)
    assert not [one for one in (*linux, *without) if one.check == "container gpu"]


def test_contexts_of_docker() -> None:
    colima, default, desktop = parse_contexts(outputs.CONTEXTS_COLIMA_AND_DESKTOP)
    assert colima == DockerContext("colima", "unix:///Users/me/.colima/docker.sock", True)
    assert default == DockerContext("default", "unix:///var/run/docker.sock", False)
    assert desktop == DockerContext("desktop-linux", "", False)
    assert [one.is_current for one in parse_contexts(outputs.CONTEXTS_COLIMA)] == [True, False]
    assert parse_contexts("docker: 'context' is not a docker command.\n") == ()


def of_contexts(text: str, *sockets: str, is_used: bool = True) -> list[Finding]:
    there = {Path(socket) for socket in sockets}
    return list(dead_context(parse_contexts(text), there.__contains__, is_used=is_used))


def test_a_context_that_leads_nowhere_while_another_engine_runs() -> None:
    # what https://github.com/abiosoft/colima/issues/93 met after `colima stop`
    (found,) = of_contexts(outputs.CONTEXTS_COLIMA, "/var/run/docker.sock")
    assert found.level == "problem"
    assert "Docker's context colima leads to a socket that is not there" in found.message
    assert "docker context use default" in str(found.fix)
    (unused,) = of_contexts(outputs.CONTEXTS_COLIMA, "/var/run/docker.sock", is_used=False)
    assert unused.level == "note"


@pytest.mark.parametrize(
    "sockets",
    [
        ("/Users/me/.colima/default/docker.sock",),
        ("/Users/me/.colima/default/docker.sock", "/var/run/docker.sock"),
        (),  # no engine runs at all: that is said by the check of the engine
    ],
)
def test_a_context_that_is_well(sockets: tuple[str, ...]) -> None:
    assert of_contexts(outputs.CONTEXTS_COLIMA, *sockets) == []


def test_a_context_that_nobody_chose_leads_the_agent_nowhere_wrong() -> None:
    # the mark at `default`, as in https://docs.docker.jp/engine/reference/commandline/context_ls.html
    text = outputs.CONTEXTS_COLIMA.replace("colima *", "colima  ").replace("default  ", "default *")
    assert of_contexts(text, "/Users/me/.colima/default/docker.sock") == []


# -- the local network ---------------------------------------------------------------------------


def failing(number: int, text: str) -> Callable[[httpx.Request], httpx.Response]:
    """Return what fails as a connection does that the system refuses."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("All connection attempts failed") from OSError(number, text)

    return fail


no_route = failing(errno.EHOSTUNREACH, "No route to host")
refused = failing(errno.ECONNREFUSED, "Connection refused")


def ready(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"status": "ready", "registry": "ok"})


def agent(lease: str, problem: str = "") -> RunningState:
    return RunningState("http://127.0.0.1:5055", "ready", lease, problem, "ok")


def of_network(
    tmp_path: Path,
    answer: Callable[[httpx.Request], httpx.Response],
    *,
    url: str = LAN,
    state: RunningState | None = None,
    system: str = "darwin",
) -> list[Finding]:
    settings = load_settings(iir_home=tmp_path, router_url=url)
    transport = httpx.MockTransport(answer)
    found = examine_router(settings, wall_time, transport, state=state, system=system)
    return [one for one in found if one.check == "local network"]


def test_no_route_to_a_router_of_the_local_network(tmp_path: Path) -> None:
    (found,) = of_network(tmp_path, no_route)
    assert found.level == "problem"
    assert "macOS may block this program from the local network" in found.message
    assert "Privacy & Security, Local Network" in str(found.fix)


def test_an_agent_that_is_blocked_while_the_terminal_is_not(tmp_path: Path) -> None:
    (found,) = of_network(tmp_path, ready, state=agent("router_away", "no_route"))
    assert found.level == "problem"
    assert found.message.startswith(
        f"the agent is told that there is no route to {LAN}, and this command gets there"
    )


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        (refused, {}),
        (ready, {}),
        (ready, {"state": agent("held")}),
        (ready, {"state": agent("router_away", "certificate_not_trusted")}),
        (no_route, {"system": "linux"}),
        (no_route, {"url": "http://127.0.0.1:8000"}),
        (no_route, {"url": "https://router.example.com"}),
    ],
)
def test_what_is_no_block(
    tmp_path: Path,
    answer: Callable[[httpx.Request], httpx.Response],
    changes: dict[str, object],
) -> None:
    assert of_network(tmp_path, answer, **changes) == []  # type: ignore[arg-type] # by name


def test_the_lease_tells_that_there_is_no_route() -> None:
    codes = []
    for fail in (no_route, refused):
        with pytest.raises(httpx.ConnectError) as failed:
            fail(httpx.Request("PUT", LAN))
        codes.append(failure_code(failed.value))
    assert codes == ["no_route", "no_connection"]


class Group(Exception):
    """What anyio raises for a name with several addresses; the language has it from 3.11 on."""

    def __init__(self, *exceptions: Exception) -> None:
        super().__init__("multiple connection attempts failed")
        self.exceptions = exceptions


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((errno.ECONNREFUSED, errno.EHOSTUNREACH), "no_route"),
        ((errno.ECONNREFUSED, errno.ETIMEDOUT), "no_connection"),
    ],
)
def test_a_router_with_several_addresses(numbers: tuple[int, ...], code: str) -> None:
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = Group(*(OSError(number, "") for number in numbers))
    assert failure_code(error) == code


# -- the disk ------------------------------------------------------------------------------------


def test_a_disk_that_is_full_and_one_that_is_not(tmp_path: Path) -> None:
    full = examine_disk(tmp_path, [], lambda _: 300_000_000)
    assert (full.level, full.fix) == (
        "problem",
        "free some, or set IIR_HOME to a folder on a larger disk",
    )
    assert examine_disk(tmp_path, [], lambda _: 60_000_000_000).level == "ok"
