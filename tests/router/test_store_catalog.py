"""The registry's catalog: what is taken, refused, listed and seeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from router.domain import (
    DeploymentEntry,
    PrefixRule,
    Provider,
    TimeLimits,
    Zone,
    is_model_name,
)
from router.store import catalog, urls
from router.store.errors import InvalidValue, NameTaken, Refusal, UnknownName
from router.store.seed import SeedDocument, read_seed, seed
from router.store.versions import Version, current
from router.store.writer import RegistryWriter
from shared.contracts.apis import APIS
from shared.http.base_url import api_base


def provider(name: str = "acme", **changes: object) -> Provider:
    fields: dict[str, object] = {
        "name": name,
        "dialect": "openai",
        "base_url": "https://api.acme.example",
        "zone": Zone.CLOUD,
        "key_env": "ACME_KEY",
        **changes,
    }
    return Provider(**fields)  # type: ignore[arg-type]  # what a test changes


def on(name: str = "acme", upstream: str = "m-1", **changes: object) -> DeploymentEntry:
    return DeploymentEntry(provider=name, upstream_name=upstream, **changes)  # type: ignore[arg-type]  # what a test changes


def version(writer: RegistryWriter) -> int:
    return writer.run_sync(lambda c: current(c, Version.CATALOG))


def test_providers_are_added_listed_and_removed(writer: RegistryWriter) -> None:
    before = version(writer)
    writer.run_sync(
        lambda c: catalog.add_provider(c, provider(base_url="HTTPS://API.Acme.example/V2/"))
    )
    assert version(writer) > before
    [found] = writer.run_sync(catalog.list_providers)
    assert found == provider(base_url="https://api.acme.example/V2")
    with pytest.raises(NameTaken, match="acme"):
        writer.run_sync(lambda c: catalog.add_provider(c, provider()))
    writer.run_sync(lambda c: catalog.remove_provider(c, "acme"))
    assert writer.run_sync(catalog.list_providers) == []
    with pytest.raises(UnknownName, match="acme"):
        writer.run_sync(lambda c: catalog.remove_provider(c, "acme"))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "-x"},
        {"name": "x" * 65},
        {"name": "naïve"},
        {"dialect": ""},
        {"key_env": "NOT A NAME"},
        {"key_env": "1X"},
        {"key_env": ""},
        {"base_url": ""},
        {"dialect": "agent"},
        {"dialect": "agent", "base_url": "", "max_in_flight": 1},
        {"dialect": "agent", "base_url": "", "apis": ("chat",)},
        {"max_in_flight": 0},
        {"max_in_flight": 1_000_001},
        {"apis": ()},
        {"apis": ("chat", "chat")},
        {"apis": ("chat", "telepathy")},
    ],
)
def test_invalid_providers_are_refused(writer: RegistryWriter, changes: dict[str, object]) -> None:
    changes = {"name": "acme", **changes}
    with pytest.raises(InvalidValue):
        writer.run_sync(lambda c: catalog.add_provider(c, provider(**changes)))  # type: ignore[arg-type]  # what a test changes
    assert writer.run_sync(catalog.list_providers) == []


def test_limit_and_apis_of_a_provider_are_kept_and_changed(writer: RegistryWriter) -> None:
    first = provider(max_in_flight=1_000_000, apis=tuple(reversed(APIS)))
    writer.run_sync(lambda c: catalog.add_provider(c, first))
    writer.run_sync(lambda c: catalog.add_provider(c, provider("other")))
    [found, other] = writer.run_sync(catalog.list_providers)
    assert found == provider(max_in_flight=1_000_000, apis=APIS)
    assert other == provider("other")

    before = version(writer)
    changed = provider(base_url="https://elsewhere.example", key_env="OTHER_KEY", max_in_flight=8)
    # Dialect and zone are not written: another zone would be another promise to those who use it.
    writer.run_sync(lambda c: catalog.update_provider(c, replace(changed, zone=Zone.LOCAL)))
    assert version(writer) > before
    assert writer.run_sync(catalog.list_providers) == [changed, other]
    with pytest.raises(UnknownName, match="nobody"):
        writer.run_sync(lambda c: catalog.update_provider(c, provider("nobody")))
    for wrong in (provider(max_in_flight=-1), provider(apis=("speech",))):
        with pytest.raises(InvalidValue):
            writer.run_sync(lambda c, wrong=wrong: catalog.update_provider(c, wrong))  # type: ignore[misc]  # bound now


def test_time_limits_of_a_deployment_are_kept(writer: RegistryWriter) -> None:
    limits = TimeLimits(connect_s=0.5, first_byte_s=30, idle_s=86_400)
    writer.run_sync(lambda c: catalog.add_provider(c, provider()))
    writer.run_sync(lambda c: catalog.add_model(c, "m", on(limits=limits)))
    writer.run_sync(lambda c: catalog.add_model(c, "n", on()))
    places = [model.deployments for model in writer.run_sync(catalog.list_models)]
    assert places == [(on(limits=limits),), (on(limits=TimeLimits()),)]


@pytest.mark.parametrize("name", ["connect_s", "first_byte_s", "idle_s", "total_s"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, 86_401.0, float("inf"), float("nan")])
def test_time_limits_that_are_refused(writer: RegistryWriter, name: str, seconds: float) -> None:
    limits = TimeLimits(**{name: seconds})
    writer.run_sync(lambda c: catalog.add_provider(c, provider()))
    with pytest.raises(InvalidValue, match=f"{name} must be more than 0 and at most 86400 s"):
        writer.run_sync(lambda c: catalog.add_model(c, "m", on(limits=limits)))
    assert writer.run_sync(catalog.list_models) == []


def test_models_have_deployments_and_aliases(writer: RegistryWriter) -> None:
    def fill(connection: Connection) -> None:
        catalog.add_provider(connection, provider())
        catalog.add_provider(connection, provider("local", dialect="agent", base_url=""))
        catalog.add_model(
            connection,
            "org/m",
            on(capabilities=("tools",), context_tokens=4096),
            aliases=["m", "n"],
        )
        catalog.add_model(connection, "org/m", on("local", "m.gguf", priority=10, weight=2.0))
        catalog.add_alias(connection, "m", "org/m")

    writer.run_sync(fill)
    [found] = writer.run_sync(catalog.list_models)
    assert found.id == "org/m"
    assert found.aliases == ("m", "n")
    assert found.created_at > 1_700_000_000
    assert found.deployments == (
        on("local", "m.gguf", priority=10, weight=2.0),
        on(capabilities=("tools",), context_tokens=4096),
    )
    with pytest.raises(NameTaken, match="org/m"):
        writer.run_sync(lambda c: catalog.remove_provider(c, "acme"))
    with pytest.raises(UnknownName, match="alias of 'org/m'"):
        writer.run_sync(lambda c: catalog.remove_model(c, "m"))
    writer.run_sync(lambda c: catalog.remove_model(c, "org/m"))
    assert writer.run_sync(catalog.list_models) == []
    assert not writer.run_sync(lambda c: catalog.is_name_taken(c, "m"))
    writer.run_sync(lambda c: catalog.remove_provider(c, "acme"))


def test_a_name_means_one_model(writer: RegistryWriter) -> None:
    def fill(connection: Connection) -> None:
        catalog.add_provider(connection, provider())
        catalog.add_model(connection, "one", on(), aliases=["first"])
        catalog.add_model(connection, "two", on())

    writer.run_sync(fill)
    before = version(writer)
    refused = [
        lambda c: catalog.add_model(c, "one", on()),
        lambda c: catalog.add_model(c, "first", on()),
        lambda c: catalog.add_model(c, "three", on(), aliases=["two"]),
        lambda c: catalog.add_model(c, "three", on(), aliases=["first"]),
        lambda c: catalog.add_model(c, "three", on(), aliases=["three"]),
        lambda c: catalog.add_alias(c, "first", "two"),
        lambda c: catalog.add_alias(c, "two", "one"),
    ]
    for write in refused:
        with pytest.raises(NameTaken):
            writer.run_sync(write)
    assert version(writer) == before
    assert [model.id for model in writer.run_sync(catalog.list_models)] == ["one", "two"]


def test_unknown_and_invalid_names_of_models(writer: RegistryWriter) -> None:
    writer.run_sync(lambda c: catalog.add_provider(c, provider()))
    with pytest.raises(UnknownName, match="no provider 'nobody'"):
        writer.run_sync(lambda c: catalog.add_model(c, "m", on("nobody")))
    with pytest.raises(UnknownName, match="no model 'm'"):
        writer.run_sync(lambda c: catalog.add_alias(c, "x", "m"))
    with pytest.raises(UnknownName, match="no model 'm'"):
        writer.run_sync(lambda c: catalog.remove_model(c, "m"))
    for name in ("", "a b", "a\nb", "x" * 257, "a\u200bb"):
        with pytest.raises(InvalidValue):
            writer.run_sync(lambda c, name=name: catalog.add_model(c, name, on()))  # type: ignore[misc]  # bound now
    with pytest.raises(InvalidValue, match="upstream name"):
        writer.run_sync(lambda c: catalog.add_model(c, "m", on(upstream="")))


def test_prefix_rules_longest_first(writer: RegistryWriter) -> None:
    def fill(connection: Connection) -> None:
        catalog.add_provider(connection, provider())
        for prefix in ("g", "gpt-", "gpt-5"):
            catalog.add_prefix_rule(connection, PrefixRule(prefix, "acme"))

    writer.run_sync(fill)
    rules = writer.run_sync(catalog.list_prefix_rules)
    assert [rule.prefix for rule in rules] == ["gpt-5", "gpt-", "g"]
    with pytest.raises(NameTaken):
        writer.run_sync(lambda c: catalog.add_prefix_rule(c, PrefixRule("g", "acme")))
    with pytest.raises(UnknownName):
        writer.run_sync(lambda c: catalog.add_prefix_rule(c, PrefixRule("h", "nobody")))
    writer.run_sync(lambda c: catalog.remove_provider(c, "acme"))
    assert writer.run_sync(catalog.list_prefix_rules) == []


# ── seeding ──────────────────────────────────────────────────────────────────────────────────


def test_packaged_seed_is_applied_once(writer: RegistryWriter) -> None:
    first = writer.run_sync(lambda c: seed(c, read_seed(), only_once=True))
    assert first == 9
    found = {p.name: p for p in writer.run_sync(catalog.list_providers)}
    assert found["local"] == Provider(name="local", dialect="agent", base_url="", zone=Zone.LOCAL)
    assert found["openai"] == Provider(
        name="openai",
        dialect="openai",
        base_url="https://api.openai.com",
        zone=Zone.CLOUD,
        key_env="EXTERNAL_OPENAI_KEY",
        apis=("chat", "completions", "embeddings", "responses"),
    )
    rules = {rule.prefix: rule.provider for rule in writer.run_sync(catalog.list_prefix_rules)}
    assert rules["local"] == "local"
    assert rules["gpt-"] == rules["o1"] == rules["text-embedding-"] == "openai"
    before = version(writer)
    assert writer.run_sync(lambda c: seed(c, read_seed(), only_once=True)) == 0
    assert version(writer) == before


def test_what_the_user_removed_or_made_stays(writer: RegistryWriter) -> None:
    mine = provider("local", base_url="http://127.0.0.1:9", zone=Zone.LOCAL)
    writer.run_sync(lambda c: catalog.add_provider(c, mine))
    writer.run_sync(lambda c: seed(c, read_seed(), only_once=True))
    assert mine in writer.run_sync(catalog.list_providers)
    writer.run_sync(lambda c: catalog.remove_provider(c, "openai"))
    assert writer.run_sync(lambda c: seed(c, read_seed(), only_once=True)) == 0
    assert not writer.run_sync(lambda c: catalog.has_provider(c, "openai"))
    # Asked for by name, it comes back.
    assert writer.run_sync(lambda c: seed(c, read_seed())) == 7


def test_new_rule_of_a_removed_provider_is_left_out(writer: RegistryWriter) -> None:
    document = SeedDocument.model_validate({"prefix_rules": [{"prefix": "x-", "provider": "gone"}]})
    assert writer.run_sync(lambda c: seed(c, document, only_once=True)) == 0
    with pytest.raises(UnknownName):
        writer.run_sync(lambda c: seed(c, document))


def test_users_seed_file_with_models(writer: RegistryWriter, tmp_path: Path) -> None:
    path = tmp_path / "seed.yaml"
    path.write_text(
        "providers:\n"
        "  - {name: acme, base_url: 'https://api.acme.example/v3/', max_in_flight: 4,\n"
        "     apis: [chat, messages]}\n"
        "models:\n"
        "  - id: big\n"
        "    aliases: [b]\n"
        "    deployments: [{provider: acme, upstream_name: big-2026, priority: 7, total_s: 60}]\n"
        "  - id: small\n"
        "    aliases: [b]\n"
        "    deployments: [{provider: acme}]\n"
    )
    document = read_seed(path)
    assert writer.run_sync(lambda c: seed(c, document)) == 3
    assert writer.run_sync(lambda c: seed(c, document, only_once=True)) == 0
    big, small = writer.run_sync(catalog.list_models)
    assert big.aliases == ("b",)
    limits = TimeLimits(total_s=60.0)
    assert big.deployments == (on(upstream="big-2026", priority=7, limits=limits),)
    [acme] = writer.run_sync(catalog.list_providers)
    assert (acme.max_in_flight, acme.apis) == (4, ("chat", "messages"))
    assert small.aliases == ()
    assert small.deployments == (on(upstream="small"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"providers: [{name: x, colour: red}]", "providers.0.colour"),
        (b"models: [{id: x, deployments: []}]", "models.0.deployments"),
        (b"models: [{id: 7, deployments: [{provider: x}]}]", "models.0.id"),
        (b"providers: [{name: x, zone: moon}]", "providers.0.zone"),
        (b"- a\n- b\n", "the document"),
        (b"a: [", "line"),
        (b"a: \x00", "no YAML"),
        (b"\xff\xfe\xfd", "no YAML"),
        (b"[\n" * 20000, "no YAML"),
        (b"#" * (4 * 1024 * 1024 + 1), "too big"),
    ],
)
def test_invalid_seed_files_are_named_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "seed.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidValue, match=message) as caught:
        read_seed(path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_seed_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="can't be read: No such file"):
        read_seed(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    assert read_seed(tmp_path / "empty.yaml") == SeedDocument()


# ── base URLs and names ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "stored", "api"),
    [
        ("https://api.openai.com", "https://api.openai.com", "https://api.openai.com/v1"),
        ("https://api.openai.com/", "https://api.openai.com", "https://api.openai.com/v1"),
        ("https://h/api/v1/", "https://h/api/v1", "https://h/api/v1"),
        (" http://Host:8080 ", "http://host:8080", "http://host:8080/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1", "http://[::1]:8080/v1"),
    ],
)
def test_base_urls(given: str, stored: str, api: str) -> None:
    assert urls.normalise(given) == stored
    assert api_base(stored) == api


@pytest.mark.parametrize(
    "given",
    [
        "",
        "api.openai.com",
        "ftp://host",
        "file:///etc/passwd",
        "unix:/run/sock",
        "https://",
        "https:///v1",
        "https://user:secret@host",
        "https://user@host",
        "https://host/v1?key=secret",
        "https://host/?",
        "https://host/#x",
        "http://a\\@b",
        "http://host\n.evil",
        "http://ho st",
        "http://host:99999",
        "http://host:x",
        "http://[::1",
        "http://host/" + "x" * 600,
    ],
)
def test_base_urls_that_are_refused(given: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        urls.normalise(given)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_base_url_is_normal_after_one_pass_or_refused(text: str) -> None:
    for base_url in (text, f"http://{text}", f"https://host/{text}"):
        try:
            once = urls.normalise(base_url)
        except Refusal:
            continue
        assert urls.normalise(once) == once


@given(st.text(max_size=300))
def test_model_names_have_no_control_characters_or_spaces(text: str) -> None:
    is_fine = 0 < len(text) <= 256 and text.isprintable() and not any(c.isspace() for c in text)
    assert is_model_name(text) == is_fine
