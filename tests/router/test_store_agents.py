"""Agents in the registry: credentials, registrations, leases."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from router.domain import AgentRecord, Scope
from router.store import agents, keys
from router.store.errors import (
    CredentialRefused,
    InvalidValue,
    NameTaken,
    Superseded,
    TooLate,
    UnknownName,
)
from router.store.reader import RegistryReader
from router.store.tables import agents as agents_table
from router.store.tables import leases as leases_table
from router.store.versions import Version, current
from router.store.writer import RegistryWriter
from shared.contracts.agents import AgentModel, Heartbeat, Queue, Registration


def registration(incarnation: int = 1) -> Registration:
    return Registration(
        incarnation=incarnation,
        name="mac",
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=(AgentModel(id="smol", aliases=("default",), status="loaded"),),
    )


def heartbeat(lease_id: str = "l1", seq: int = 1, running: int = 0) -> Heartbeat:
    return Heartbeat(lease_id=lease_id, incarnation=1, seq=seq, queue=Queue(running=running))


def add(writer: RegistryWriter, name: str = "mac") -> tuple[int, str]:
    credential = writer.run_sync(lambda c: agents.add_agent(c, name))
    info = next(a for a in writer.run_sync(agents.list_agents) if a.record.name == name)
    return info.record.row_id, credential


def register(
    writer: RegistryWriter,
    row_id: int,
    *,
    agent_id: str = "id-1",
    lease: str = "l1",
    nth: int = 1,
    seq: int | None = None,
) -> None:
    said = registration(nth).model_copy(update={"seq": seq})
    writer.run_sync(
        lambda c: agents.save_registration(c, row_id, agent_id, said, lease, now=lambda: 50)
    )


def records(reader: RegistryReader) -> tuple[AgentRecord, ...]:
    book = reader.leases()
    assert book is not None
    return book.agents


def test_a_registration_that_comes_late_changes_nothing(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, _ = add(writer)
    register(writer, row_id, lease="l1", seq=3)
    writer.run_sync(lambda c: agents.save_heartbeats(c, [(row_id, "l1", heartbeat(seq=5))]))
    for seq in (2, 5):
        with pytest.raises(TooLate):
            register(writer, row_id, lease="l2", seq=seq)
    assert records(reader)[0].lease_id == "l1"
    register(writer, row_id, lease="l2", seq=6)
    register(writer, row_id, lease="l3", nth=2, seq=1)
    assert records(reader)[0].lease_id == "l3"


def test_credential_is_a_key_with_the_scope_agent(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, credential = add(writer)
    catalog = reader.catalog()
    assert catalog is not None
    found = catalog.keys[keys.parse_prefix(credential) or ""]
    assert (found.name, found.agent) == ("mac", str(row_id))
    assert found.scopes == {Scope.AGENT}
    assert found.digest == keys.digest(credential)
    assert catalog.is_open, "an agent's credential does not end open mode"
    assert records(reader) == (AgentRecord(row_id=row_id, name="mac"),)
    with pytest.raises(NameTaken):
        add(writer)


def test_revoked_agent_is_gone_and_its_name_free(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, credential = add(writer)
    register(writer, row_id)
    assert writer.run_sync(lambda c: agents.revoke_agent(c, "mac")) == "mac"
    catalog = reader.catalog()
    assert catalog is not None
    assert catalog.keys == {}
    assert records(reader) == ()
    [info] = writer.run_sync(agents.list_agents)
    assert info.revoked_at
    assert info.record.renewed_at is None
    with pytest.raises(UnknownName):
        writer.run_sync(lambda c: agents.revoke_agent(c, "mac"))
    with pytest.raises(CredentialRefused, match="revoked"):
        register(writer, row_id)
    with pytest.raises(CredentialRefused, match="revoked"):
        writer.run_sync(lambda c: agents.ensure_agent(c, "mac", credential))
    assert add(writer)[1] != credential
    assert records(reader) == (AgentRecord(row_id=row_id, name="mac"),)


def test_ensure_agent_is_idempotent_and_heals(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    credential, _, _ = keys.make_key()
    writer.run_sync(lambda c: agents.ensure_agent(c, "mac", credential))
    [record] = records(reader)
    register(writer, record.row_id)
    before = reader.leases()
    writer.run_sync(lambda c: agents.ensure_agent(c, "mac", credential))
    assert before is not None
    assert reader.leases(before.version) is None

    # Another credential for the name: the old one, and what came with it, is gone.
    other, _, _ = keys.make_key()
    writer.run_sync(lambda c: agents.ensure_agent(c, "mac", other))
    catalog = reader.catalog()
    assert catalog is not None
    assert list(catalog.keys) == [keys.parse_prefix(other)]
    assert records(reader) == (AgentRecord(row_id=record.row_id, name="mac"),)


def test_credentials_that_are_not_taken(writer: RegistryWriter) -> None:
    _, credential = add(writer)
    with pytest.raises(InvalidValue, match="no credential"):
        writer.run_sync(lambda c: agents.ensure_agent(c, "mac", "hello"))
    with pytest.raises(InvalidValue, match="agent's name"):
        writer.run_sync(lambda c: agents.ensure_agent(c, "no good", keys.make_key()[0]))
    assert writer.run_sync(lambda c: agents.ensure_agent(c, "new-name", credential)) == "mac"
    forged = credential[:-1] + ("a" if credential[-1] != "a" else "b")
    with pytest.raises(CredentialRefused, match="given out"):
        writer.run_sync(lambda c: agents.ensure_agent(c, "mac", forged))


def test_registration_binds_the_id_and_grants_a_lease(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, _ = add(writer)
    catalog_before = writer.run_sync(lambda c: current(c, Version.CATALOG))
    register(writer, row_id)
    expected = AgentRecord(
        row_id=row_id,
        name="mac",
        agent_id="id-1",
        registration=registration(),
        lease_id="l1",
        renewed_at=50,
    )
    assert records(reader) == (expected,)
    assert writer.run_sync(lambda c: current(c, Version.CATALOG)) == catalog_before
    with pytest.raises(CredentialRefused, match="another id"):
        register(writer, row_id, agent_id="id-2")
    register(writer, row_id, lease="l2", nth=5)
    register(writer, row_id, lease="l3", nth=5)
    with pytest.raises(Superseded):
        register(writer, row_id, lease="l4", nth=4)
    assert records(reader)[0].lease_id == "l3"


def test_an_id_has_one_credential(writer: RegistryWriter) -> None:
    first, _ = add(writer, "mac")
    second, _ = add(writer, "thief")
    register(writer, first)
    with pytest.raises(CredentialRefused, match="another credential"):
        register(writer, second)
    writer.run_sync(lambda c: agents.revoke_agent(c, "mac"))
    register(writer, second)


def test_unknown_row_cannot_register(writer: RegistryWriter) -> None:
    with pytest.raises(CredentialRefused):
        register(writer, 4711)


def test_heartbeats_are_kept_newest_first(writer: RegistryWriter, reader: RegistryReader) -> None:
    row_id, _ = add(writer)
    register(writer, row_id)
    second, _ = add(writer, "mac-2")
    register(writer, second, agent_id="id-2", lease="l2")
    before = writer.run_sync(lambda c: current(c, Version.LEASES))
    batch = [(row_id, "l1", heartbeat(seq=3, running=2)), (second, "l2", heartbeat("l2", seq=0))]
    writer.run_sync(lambda c: agents.save_heartbeats(c, batch, now=lambda: 99.0))
    assert writer.run_sync(lambda c: current(c, Version.LEASES)) == before + 1
    assert [r.heartbeat for r in records(reader)] == [hb for _, _, hb in batch]
    assert writer.run_sync(agents.list_agents)[0].record.renewed_at == 99

    stale = [
        (row_id, "l1", heartbeat(seq=3)),
        (row_id, "l1", heartbeat(seq=2)),
        (row_id, "l0", heartbeat("l0", seq=9)),
        (4711, "l1", heartbeat(seq=9)),
    ]
    writer.run_sync(lambda c: agents.save_heartbeats(c, stale))
    assert writer.run_sync(lambda c: current(c, Version.LEASES)) == before + 1
    assert records(reader)[0].heartbeat == heartbeat(seq=3, running=2)


def test_released_lease_leaves_the_registration(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, _ = add(writer)
    register(writer, row_id)
    writer.run_sync(lambda c: agents.release_lease(c, row_id))
    [record] = records(reader)
    assert record.lease_id is None
    assert record.registration == registration()
    before = writer.run_sync(lambda c: current(c, Version.LEASES))
    writer.run_sync(lambda c: agents.release_lease(c, row_id))
    assert writer.run_sync(lambda c: current(c, Version.LEASES)) == before


def test_what_cannot_be_parsed_hides_no_other_agent(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    row_id, _ = add(writer)
    register(writer, row_id)
    add(writer, "mac-2")
    writer.run_sync(lambda c: c.execute(update(agents_table).values(registration='{"new": 1}')))
    writer.run_sync(lambda c: c.execute(update(leases_table).values(heartbeat="[]")))
    first, second = records(reader)
    assert (first.registration, first.heartbeat, first.lease_id) == (None, None, "l1")
    assert second.name == "mac-2"
