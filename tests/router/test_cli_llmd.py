"""`iir` and an llm-d cluster: its row, its models, their objectives, and what the doctor says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from router.cli.doctor import Finding, examine
from router.cli.router_probe import Answer
from router.cli.session import write
from router.domain import KnownModel, ModelsChange, ServedModel
from router.settings import load_settings
from router.store.database import Connection
from router.store.known_models import change_known_models, list_forgotten
from router.store.prepare import prepare
from tests.router.command_line import Iir, from_json
from tests.threaded import answering

pytestmark = pytest.mark.usefixtures("home")


@dataclass
class Cluster:
    """A gateway on loopback that lists models."""

    url: str = ""
    status: int = 200
    models: tuple[str, ...] = ("org/tiny", "other")
    seen: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Set LLMD_ENDPOINT to a cluster."""
    found = Cluster()

    def answer(asked: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        found.seen.append((asked.path, asked.headers.get("authorization")))
        body = json.dumps({"data": [{"id": name} for name in found.models]}).encode()
        return found.status, body

    with answering(answer) as port:
        found.url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("LLMD_ENDPOINT", found.url)
        yield found


def findings() -> dict[str, Finding]:
    found = examine(load_settings(), now=2e9, ask=lambda *_: Answer("ready"))
    return {finding.check: finding for finding in found}


def test_without_the_setting_nothing_of_it_shows(iir: Iir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMD_ENDPOINT", raising=False)
    iir("keys", "create", "--name", "one")
    assert "llmd" not in iir("providers", "list") + iir("models", "list") + str(findings())


def test_the_setting_makes_a_row_and_its_models_are_listed(iir: Iir, cluster: Cluster) -> None:
    iir("models", "add", "pinned", "--provider", "llmd", "--upstream-name", "org/tiny")
    [row] = [p for p in from_json(iir("providers", "list", "--json")) if p["name"] == "llmd"]
    assert (row["dialect"], row["zone"], row["base_url"]) == ("llmd", "cluster", None)
    assert set(row["apis"]) >= {"chat", "responses", "messages"}
    assert cluster.url in iir("providers", "list")
    listed = {m["id"]: m for m in from_json(iir("models", "list", "--json"))}
    assert set(listed) == {"pinned", "org/tiny", "other"}
    assert {(m["served_by"], m["zone"], m["status"]) for m in listed.values()} == {
        ("llmd", "cluster", "ready")
    }
    assert cluster.seen[0] == ("/v1/models", None)


def test_a_registry_that_exists_gets_the_row_too(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMD_ENDPOINT")
    iir("keys", "create", "--name", "one")
    url = load_settings().store_url
    assert not prepare(url)
    assert "llmd" not in iir("providers", "list")
    assert prepare(url, has_cluster=True)
    assert prepare(url, has_cluster=True), "once is enough"
    assert "LLMD_ENDPOINT (not set)" in iir("providers", "list")


def test_without_its_address_a_model_says_so(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    iir("models", "add", "pinned", "--provider", "llmd")
    monkeypatch.delenv("LLMD_ENDPOINT")
    [row] = from_json(iir("models", "list", "--json"))
    assert row["status"] == "no address"
    assert "LLMD_ENDPOINT" in iir("providers", "refresh", "llmd", code=1)
    finding = findings()["cluster llmd"]
    assert finding.level == "warning"
    assert "LLMD_ENDPOINT" in str(finding.fix)


def test_a_name_that_somebody_has_is_listed_once(iir: Iir, cluster: Cluster) -> None:
    iir("models", "add", "other", "--provider", "openai", "--alias", "org/tiny")
    assert [m["served_by"] for m in from_json(iir("models", "list", "--json"))] == ["openai"]


def test_a_cluster_that_is_away_costs_a_line(iir: Iir, cluster: Cluster) -> None:
    iir("models", "add", "pinned", "--provider", "llmd")
    cluster.status = 500
    assert [m["id"] for m in from_json(iir("models", "list", "--json"))] == ["pinned"]


def test_refresh_makes_rows_of_what_it_serves(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD_API_KEY", "vllm-key")
    iir("keys", "create", "--name", "one")
    assert iir("providers", "refresh", "llmd") == "models added: 2\n"
    assert cluster.seen == [("/v1/models", "Bearer vllm-key")]
    monkeypatch.delenv("LLMD_ENDPOINT")
    assert [m["id"] for m in from_json(iir("models", "list", "--json"))] == ["org/tiny", "other"]


def test_a_cluster_is_asked_by_no_proxy_as_the_router_asks_it(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    iir("keys", "create", "--name", "one")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert iir("providers", "refresh", "llmd") == "models added: 2\n"
    iir("providers", "add", "web", "--base-url", cluster.url)
    assert "can't be reached" in iir("providers", "refresh", "web", code=1), "others go by it"


def test_objectives_and_base_models_are_set_and_taken_back(iir: Iir, cluster: Cluster) -> None:
    iir("models", "add", "m", "--provider", "llmd", "--objective", "premium")
    [row] = [m for m in from_json(iir("models", "list", "--json")) if m["id"] == "m"]
    assert row["objective"] == "premium"
    assert "objective premium" in iir("models", "list")
    said = iir("models", "set", "m", "--objective", "batch", "--base-model", "org/tiny")
    assert said == "model m on llmd: objective batch; base model org/tiny\n"
    said = iir("models", "set", "m", "--no-objective")
    assert said == "model m on llmd: objective -; base model org/tiny\n"
    said = iir("models", "set", "m", "--provider", "llmd", "--no-base-model")
    assert said == "model m on llmd: objective -; base model m\n"


def test_latencies_that_a_picker_aims_at_are_set_and_taken_back(
    iir: Iir, cluster: Cluster, tmp_path: Path
) -> None:
    iir("models", "add", "m", "--provider", "llmd", "--slo-ttft-ms", "500")
    said = iir("models", "set", "m", "--slo-tpot-ms", "40", "--objective", "premium")
    assert said == "model m on llmd: objective premium; base model m; TTFT 500 ms; TPOT 40 ms\n"
    assert "objective premium, TTFT 500 ms, TPOT 40 ms" in iir("models", "list")
    [row] = [m for m in from_json(iir("models", "list", "--json")) if m["id"] == "m"]
    assert row["slo"] == {"ttft_ms": 500, "tpot_ms": 40}
    said = iir("models", "set", "m", "--no-slo")
    assert said == "model m on llmd: objective premium; base model m\n"
    path = tmp_path / "mine.yaml"
    path.write_text("models: [{id: s, deployments: [{provider: llmd, slo_ttft_ms: 300}]}]")
    iir("seed", str(path))
    said = iir("models", "set", "s", "--slo-tpot-ms", "20")
    assert said.endswith("; TTFT 300 ms; TPOT 20 ms\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "m"), "--help"),
        (("set", "m", "--objective", "a", "--no-objective"), "contradict"),
        (("set", "m", "--objective", "Not_A_Name"), "Kubernetes"),
        (("set", "m", "--objective", ""), "Kubernetes"),
        (("set", "m", "--objective", "a\r\nx-evil: 1"), "Kubernetes"),
        (("set", "m", "--base-model", "two words"), "base model"),
        (("set", "none", "--objective", "a"), "iir models add none"),
        (("set", "m", "--slo-ttft-ms", "0"), "1 to 86400000 ms"),
        (("set", "m", "--slo-tpot-ms", "86400001"), "1 to 86400000 ms"),
        (("set", "m", "--slo-ttft-ms", "5", "--no-slo"), "contradict"),
        (("add", "x", "--provider", "openai", "--slo-ttft-ms", "5"), "llm-d's"),
        (("set", "far", "--provider", "openai", "--objective", "a"), "llm-d's"),
        (("add", "x", "--provider", "openai", "--objective", "a"), "llm-d's"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    iir: Iir, cluster: Cluster, arguments: tuple[str, ...], message: str
) -> None:
    iir("models", "add", "m", "--provider", "llmd")
    iir("models", "add", "far", "--provider", "openai")
    assert message in iir("models", *arguments, code=2)


def test_a_seed_file_may_name_objectives(iir: Iir, cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "models: [{id: m, deployments: [{provider: llmd, objective: premium, base_model: b}]}]"
    )
    iir("keys", "create", "--name", "one")
    iir("seed", str(path))
    assert iir("models", "set", "m", "--objective", "x") == (
        "model m on llmd: objective x; base model b\n"
    )


def test_the_doctor_says_how_the_cluster_is(iir: Iir, cluster: Cluster) -> None:
    iir("keys", "create", "--name", "one")
    found = findings()["cluster llmd"]
    assert (found.level, found.message) == ("ok", "serves org/tiny, other")
    assert findings()["catalog"].level == "ok", "it is the cluster that has the models"
    cluster.models = ()
    assert findings()["cluster llmd"].level == "warning"
    cluster.models, cluster.status = tuple(f"m{n}" for n in range(9)), 200
    assert findings()["cluster llmd"].message.endswith("and 6 more")
    cluster.status = 503
    found = findings()["cluster llmd"]
    assert found.level == "warning"
    assert "kubectl" in str(found.fix)


@pytest.mark.parametrize("status", [401, 403])
def test_the_doctor_says_which_credential_is_not_taken(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    further = ("--dialect", "llmd", "--base-url", cluster.url)
    monkeypatch.setenv("EAST_KEY", "wrong")
    iir("providers", "add", "east", *further, "--key-env", "EAST_KEY")
    iir("providers", "add", "west", *further)
    cluster.status = status
    found = findings()
    for name, advice in (
        ("llmd", "set LLMD_API_KEY"),
        ("east", "set EAST_KEY"),
        ("west", "--key-env"),
    ):
        finding = found[f"cluster {name}"]
        assert finding.level == "warning"
        assert str(status) in finding.message
        assert advice in str(finding.fix)
        assert "kubectl" not in str(finding.fix)


def test_a_provider_of_that_name_that_is_something_else(
    iir: Iir, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMD_ENDPOINT")
    iir("providers", "add", "llmd", "--base-url", "https://acme.example")
    monkeypatch.setenv("LLMD_ENDPOINT", cluster.url)
    assert not prepare(load_settings().store_url, has_cluster=True)
    finding = findings()["provider llmd"]
    assert finding.level == "warning"
    assert "iir providers remove llmd" in str(finding.fix)
    assert "https://acme.example" in iir("providers", "list")


def test_a_further_cluster_needs_an_address(iir: Iir, cluster: Cluster) -> None:
    iir(
        "providers",
        "add",
        "spare",
        "--dialect",
        "llmd",
        "--zone",
        "cluster",
        "--base-url",
        cluster.url,
    )
    assert findings()["cluster spare"].level == "ok"
    arguments = ("--dialect", "llmd", "--base-url", "")
    assert "http://" in iir("providers", "add", "third", *arguments, code=2)


def test_a_bad_address_is_one_line_that_says_how_to_write_it(
    iir: Iir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("http://gateway/api", "ftp://gateway", "http://", "gateway:99999"):
        monkeypatch.setenv("LLMD_ENDPOINT", given)
        error = iir("models", "list", code=2)
        assert error.startswith("iir: the setting LLMD_ENDPOINT is not valid: the address ")
        assert error.endswith("write it as http://HOST:PORT\n")


# ── the names that a cluster is known for ────────────────────────────────────────────────────


def know(*names: str, cluster: str = "llmd", missing_s: int = 0) -> None:
    """Write what a router writes that has seen them, and heard of what was let go before."""
    known = tuple(
        KnownModel(cluster=cluster, model=ServedModel(id=name), missing_s=missing_s)
        for name in names
    )

    def seen(connection: Connection) -> None:
        heard = frozenset(list_forgotten(connection))
        change_known_models(connection, ModelsChange(cluster=cluster, known=known, heard=heard))

    write(seen)


def kept(iir: Iir) -> list[tuple[str, int]]:
    rows = from_json(iir("providers", "names", "llmd", "--json"))
    return [(row["id"], row["missing_s"]) for row in rows]


def test_kept_names_are_listed_and_let_go_one_by_one(iir: Iir, cluster: Cluster) -> None:
    iir("models", "add", "m", "--provider", "llmd")
    assert "no names" in iir("providers", "names", "llmd")
    know("org/a", "org/b")
    know("org/old", missing_s=7200)
    assert kept(iir) == [("org/a", 0), ("org/b", 0), ("org/old", 7200)]
    assert "2 h" in iir("providers", "names", "llmd")
    assert "forgotten of llmd: org/a, org/old" in iir(
        "providers", "forget", "llmd", "org/a", "org/old"
    )
    assert kept(iir) == [("org/b", 0)]
    know("org/a")  # the cluster lists it
    assert kept(iir) == [("org/a", 0), ("org/b", 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("names", "openai"), "llm-d clusters only"),
        (("names", "nobody"), "no provider"),
        (("forget", "openai", "gpt-4"), "llm-d clusters only"),
        (("forget", "llmd", "org/a", "org/b"), "not known for 'org/b'"),
    ],
)
def test_names_that_nobody_keeps_are_not_let_go(
    iir: Iir, cluster: Cluster, arguments: tuple[str, ...], message: str
) -> None:
    iir("models", "add", "m", "--provider", "llmd")
    know("org/a")
    assert message in iir("providers", *arguments, code=2)
    assert kept(iir) == [("org/a", 0)], "all or none"
