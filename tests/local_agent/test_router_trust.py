"""Whose certificate the agent takes for its router's: a private authority is named, and no other counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from local_agent.app import serve
from local_agent.cli.app import app
from local_agent.control.credential import load_credential
from local_agent.control.trust import failure_code, router_trust
from local_agent.settings import load_settings
from tests.local_agent.test_joining import StandInRouter
from tests.shared.certificates import make_certificate, speak_tls

TOKEN = "iir-join-abcdefgh-secretsecret"


@dataclass
class Tls:
    """A router behind TLS, and the file of the authority that vouches for it."""

    router: StandInRouter
    url: str
    ca_file: Path
    home: Path

    def join(self, url: str = "") -> Result:
        return CliRunner().invoke(app, ["join", url or self.url, TOKEN])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tls]:
    monkeypatch.setenv("IIR_HOME", str(tmp_path / "home"))
    router = StandInRouter()
    router.server.handle_error = lambda *_: None  # type: ignore[method-assign] # who leaves early
    speak_tls(router.server, certificate)
    thread = threading.Thread(target=router.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = router.url.replace("http://127.0.0.1", "https://localhost")
    yield Tls(router, url, certificate[0], tmp_path / "home")
    router.server.shutdown()
    thread.join()
    router.server.server_close()


def test_an_unknown_authority_is_refused_and_the_next_step_named(tls: Tls) -> None:
    result = tls.join()
    assert result.exit_code == 1
    assert "TLS certificate is not trusted" in result.output
    assert "ROUTER_CA_FILE" in result.output
    assert tls.router.seen == []
    assert not (tls.home / "agent" / "credential").exists()


def test_a_named_authority_is_trusted_for_its_names_only(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_CA_FILE", str(tls.ca_file))
    other = tls.join(tls.url.replace("localhost", "127.0.0.1"))
    assert other.exit_code == 1
    assert "TLS certificate is not trusted" in other.output
    result = tls.join()
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    assert "serve` needs ROUTER_CA_FILE" in result.output
    assert tls.router.asked() == ["join", "confirm"]
    kept = load_credential(tls.home / "agent" / "credential")
    assert kept is not None
    assert kept.router_url == tls.url
    assert CliRunner().invoke(app, ["rotate"]).exit_code == 0


async def test_the_lease_says_that_the_certificate_is_the_problem(tls: Tls) -> None:
    async with httpx.AsyncClient(verify=router_trust(None), trust_env=False) as client:
        with pytest.raises(httpx.HTTPError) as failed:
            await client.get(tls.url)
    assert failure_code(failed.value) == "certificate_not_trusted"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "can't be read"), ("no certificate\n", "no certificate in PEM")]
)
def test_a_file_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("ROUTER_CA_FILE", str(path))
    result = CliRunner().invoke(app, ["join", "https://localhost:9", TOKEN])
    assert result.exit_code == 2
    assert "ROUTER_CA_FILE" in result.output
    assert said in result.output
    with pytest.raises(SystemExit, match=said):
        serve(load_settings(agent_port=0))
