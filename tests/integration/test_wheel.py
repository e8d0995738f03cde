"""The wheel as an application: installed without the checkout, served from an empty folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.installs import INSTALLERS, Installed, Installer, build_wheel
from tests.integration.stack import ANSWER, MESSAGES, MODEL, until

pytestmark = pytest.mark.integration
STATE = ("Library/Application Support/iir", ".local/share/iir")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session", params=INSTALLERS)
def installer(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installer:
    """Install the wheel in each of the ways."""
    found = Installer(request.param, tmp_path_factory.mktemp(f"by-{request.param}"))
    found.install(wheel)
    return found


@pytest.fixture
def installed(installer: Installer, tmp_path: Path) -> Iterator[Installed]:
    """Hand out the programs, and end what they started."""
    home = tmp_path / "home of mine"  # on a Mac the state's folder has a space in its name
    home.mkdir()
    found = Installed(programs=installer.programs, home=home)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return another project's folder: its settings, and modules that have our packages' names."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".env").write_text("DATABASE_URL=postgresql://db/theirs\nLOG_LEVEL=LOUD\n")
    for name in ("shared", "router", "local_agent"):
        (folder / f"{name}.py").write_text("raise AssertionError('another project is imported')\n")
    return folder


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=5).is_success
    except httpx.HTTPError:
        return False


def answer(url: str) -> str | None:
    """Ask the router for the capital of France; None: not served (yet)."""
    body = {"model": "default", "messages": MESSAGES, "temperature": 0}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    if not reply.is_success:
        assert reply.status_code in {404, 503}, reply.text
        return None
    return str(reply.json()["choices"][0]["message"]["content"])


def test_a_first_answer_without_a_clone(installed: Installed, empty: Path, project: Path) -> None:
    router = installed.serve("iir", cwd=empty)
    until(lambda: is_ready(installed.router_url), 30, "the router is ready")
    pulled = installed.run("iir-agent", "pull", MODEL, cwd=project)
    assert MODEL in pulled
    token = installed.run("iir", "agents", "invite", "--quiet", cwd=project)
    installed.run("iir-agent", "join", installed.router_url, "-", cwd=project, says=token)
    agent = installed.serve("iir-agent", cwd=empty)
    until(lambda: answer(installed.router_url) == ANSWER, 60, "the embedded model answers")

    assert MODEL in installed.run("iir", "models", "list", cwd=project)
    assert "ready" in installed.run("iir-agent", "ps", cwd=project)
    installed.run("iir", "doctor", cwd=project)
    installed.run("iir-agent", "doctor", cwd=project)
    page = httpx.get(f"{installed.router_url}/docs", trust_env=False).text
    assets = re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css))"', page)
    assert assets
    for path in assets:
        assert httpx.get(f"{installed.router_url}{path}", trust_env=False).is_success

    for service in (agent, router):
        service.terminate()
        assert service.wait(20) == 0
    assert list(empty.iterdir()) == []
    (state,) = (installed.home / name for name in STATE if (installed.home / name).is_dir())
    assert (state / "models.db").is_file()
    assert list((state / "models" / MODEL).glob("*.gguf"))


def test_several_processes_start_where_others_modules_lie(
    installed: Installed, project: Path
) -> None:
    router = installed.serve("iir", "--workers", "2", cwd=project)
    until(lambda: is_ready(installed.router_url), 30, "the router is ready")
    router.terminate()
    assert router.wait(20) == 0
    assert "another project" not in installed.log("iir").read_text()


def test_an_upgrade_keeps_what_is_there_and_an_uninstall_does_too(
    installed: Installed, installer: Installer, wheel: Path, empty: Path
) -> None:
    """Comes last: it takes the programs away."""
    installed.run("iir", "migrate", cwd=empty)
    installed.run("iir", "keys", "create", "--name", "laptop", cwd=empty)
    installer.install(wheel, again=True)
    installed.run("iir", "migrate", cwd=empty)
    assert "laptop" in installed.run("iir", "keys", "list", cwd=empty)
    installer.uninstall()
    assert not [name for name in ("iir", "iir-agent") if (installer.programs / name).exists()]
    assert list(installed.home.rglob("models.db"))
