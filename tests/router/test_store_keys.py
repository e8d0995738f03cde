"""API keys: made, recognised, revoked; and never to be read from the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.domain import Scope
from router.store import keys
from router.store.errors import InvalidValue, NameTaken, UnknownName
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter

INFERENCE = frozenset({Scope.INFERENCE})


def test_keys_have_a_public_prefix_and_a_secret() -> None:
    key, prefix, digest = keys.make_key()
    assert re.fullmatch(r"sk-iir-[a-z2-7]{8}-[a-z2-7]{40}", key)
    assert keys.parse_prefix(key) == prefix
    assert keys.digest(key) == digest
    assert keys.make_key()[0] != key


@given(st.text())
def test_any_text_may_be_offered_as_a_key(text: str) -> None:
    assert keys.parse_prefix(text) is None
    assert keys.parse_prefix(f"{keys.make_key()[0]}{text or 'x'}") is None
    assert re.fullmatch("[0-9a-f]{64}", keys.digest(text))


def test_surrogates_have_a_digest_too() -> None:
    assert keys.digest("\udcff")


def test_key_is_in_the_catalog_until_it_is_revoked(url: str, writer: RegistryWriter) -> None:
    reader = RegistryReader(url)
    key = writer.run_sync(
        lambda c: keys.create_key(c, "laptop", [Scope.ADMIN, Scope.INFERENCE], now=lambda: 50.0)
    )
    prefix = keys.parse_prefix(key) or ""
    catalog = reader.catalog()
    assert catalog is not None
    found = catalog.keys[prefix]
    assert (found.name, found.digest, found.agent) == ("laptop", keys.digest(key), None)
    assert found.scopes == {Scope.ADMIN, Scope.INFERENCE}
    assert not catalog.is_open
    [info] = writer.run_sync(keys.list_keys)
    assert (info.created_at, info.revoked_at) == (50, None)

    revoked = writer.run_sync(lambda c: keys.revoke_key(c, "laptop", now=lambda: 60.0))
    assert revoked.revoked_at == 60
    after = reader.catalog(catalog.version)
    assert after is not None
    assert after.keys == {}
    assert not after.is_open, "revoking the last key must not open the router again"
    reader.close()


def test_registry_does_not_hold_the_key(url: str, writer: RegistryWriter) -> None:
    key = writer.run_sync(lambda c: keys.create_key(c, "laptop", INFERENCE))
    secret = key.rsplit("-", 1)[1].encode()
    folder = Path(url.removeprefix("sqlite:///")).parent
    contents = [path.read_bytes() for path in folder.iterdir()]
    assert any(keys.digest(key).encode() in content for content in contents)
    assert not any(secret in content for content in contents)


def test_revoke_by_prefix_name_or_whole_key(writer: RegistryWriter) -> None:
    made = [writer.run_sync(lambda c: keys.create_key(c, "twin", INFERENCE)) for _ in range(4)]
    prefixes = [keys.parse_prefix(key) or "" for key in made]
    with pytest.raises(NameTaken, match=prefixes[1]):
        writer.run_sync(lambda c: keys.revoke_key(c, "twin"))
    writer.run_sync(lambda c: keys.revoke_key(c, prefixes[0]))
    writer.run_sync(lambda c: keys.revoke_key(c, f"sk-iir-{prefixes[1]}"))
    writer.run_sync(lambda c: keys.revoke_key(c, made[2]))
    writer.run_sync(lambda c: keys.revoke_key(c, "twin"))
    assert all(info.revoked_at for info in writer.run_sync(keys.list_keys))
    with pytest.raises(UnknownName) as caught:
        writer.run_sync(lambda c: keys.revoke_key(c, made[2]))
    assert made[2] not in str(caught.value)


@pytest.mark.parametrize("scopes", [[], [Scope.AGENT], [Scope.ADMIN, Scope.AGENT]])
def test_scopes_that_no_key_has(writer: RegistryWriter, scopes: list[Scope]) -> None:
    with pytest.raises(InvalidValue, match="scopes"):
        writer.run_sync(lambda c: keys.create_key(c, "x", scopes))


def test_keys_name_is_checked(writer: RegistryWriter) -> None:
    with pytest.raises(InvalidValue, match="key's name"):
        writer.run_sync(lambda c: keys.create_key(c, "no good\n", INFERENCE))
