"""Joining in the registry: tokens work once and in time, and no answer that is lost locks out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import select

from router.domain import ShownCredential
from router.store import agents, joining
from router.store.errors import CredentialRefused, InvalidValue, NameTaken, TokenRefused
from router.store.joining import Joined
from router.store.keys import parse_prefix
from router.store.tables import agents as agents_table
from router.store.tables import invitations
from router.store.writer import RegistryWriter
from shared.contracts.agents import Registration
from tests.router.harness import install

HOUR = 3600


def invite(writer: RegistryWriter, name: str | None = None, at: float = 0) -> str:
    return writer.run_sync(lambda c: joining.invite(c, name, HOUR, now=lambda: at))[0]


def join(
    writer: RegistryWriter,
    token: str,
    name: str = "mac",
    present: ShownCredential | None = None,
    at: float = 1,
) -> Joined:
    return writer.run_sync(lambda c: joining.join(c, token, name, present, now=lambda: at))


def shown(writer: RegistryWriter, credential: str) -> ShownCredential:
    prefix = parse_prefix(credential)
    [key] = [k for k in writer.run_sync(agents.credentials_in_force) if k.prefix == prefix]
    return ShownCredential(int(key.agent or 0), key.prefix)


def in_force(writer: RegistryWriter) -> set[str]:
    return {key.prefix for key in writer.run_sync(agents.credentials_in_force)}


def register(writer: RegistryWriter, row_id: int, agent_id: str, incarnation: int = 1) -> None:
    message = Registration(
        incarnation=incarnation, name="x", base_url="http://127.0.0.1:5000", access_token="t" * 32
    )
    writer.run_sync(lambda c: agents.save_registration(c, row_id, agent_id, message, "l1"))


def test_a_token_becomes_a_credential_and_only_its_digest_is_kept(writer: RegistryWriter) -> None:
    token = invite(writer)
    kept = writer.run_sync(lambda c: c.execute(select(invitations)).one())
    assert token not in repr(kept)
    assert token.rsplit("-", 1)[1] not in repr(kept)
    joined = join(writer, token)
    assert joined.name == "mac"
    assert joined.credential not in repr(joined)
    assert in_force(writer) == {parse_prefix(joined.credential)}
    row = writer.run_sync(lambda c: c.execute(select(agents_table)).one())
    assert joined.credential.rsplit("-", 1)[1] not in repr(row)


@pytest.mark.parametrize("at", [HOUR, HOUR + 1, 10 * HOUR])
def test_a_token_expires(writer: RegistryWriter, at: float) -> None:
    token = invite(writer)
    with pytest.raises(TokenRefused, match="expired"):
        join(writer, token, at=at)
    assert writer.run_sync(lambda c: joining.open_invitations(c, now=lambda: at)) == []
    assert join(writer, token, at=HOUR - 1).name == "mac"


def test_what_is_no_token_is_refused(writer: RegistryWriter) -> None:
    token = invite(writer)
    forged = token[:-1] + ("a" if token[-1] != "a" else "b")
    for text in ("", "x", forged, token + "a", token.upper(), "ü", "\udc80", token + "\n"):
        with pytest.raises(TokenRefused, match="no join token"):
            join(writer, text)
    assert join(writer, token)


def test_of_many_at_once_one_gets_in(writer: RegistryWriter, url: str) -> None:
    token = invite(writer)
    start = Barrier(8)

    def attempt(number: int) -> str | None:
        own = RegistryWriter(url)
        start.wait()
        try:
            return join(own, token, f"mac-{number}").name
        except TokenRefused:
            return None
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        names = [name for name in pool.map(attempt, range(8)) if name is not None]
    assert len(names) == 1
    assert [a.record.name for a in writer.run_sync(agents.list_agents)] == names


def test_a_name_that_is_taken_leaves_the_token_unused(writer: RegistryWriter) -> None:
    first = join(writer, invite(writer))
    token = invite(writer)
    with pytest.raises(NameTaken, match="iir agents invite --name mac"):
        join(writer, token)
    with pytest.raises(InvalidValue, match="agent's name"):
        join(writer, token, "not a name")
    assert in_force(writer) == {parse_prefix(first.credential)}
    assert join(writer, token, "mac-2").name == "mac-2"


def test_an_invitation_by_name_gives_an_agent_that_lost_its_credential_a_new_one(
    writer: RegistryWriter,
) -> None:
    first = join(writer, invite(writer, "mac"), "host")
    row = shown(writer, first.credential).row_id
    register(writer, row, "id-1", incarnation=9)
    second = join(writer, invite(writer, "mac"), "host")
    assert in_force(writer) == {parse_prefix(first.credential), parse_prefix(second.credential)}
    following = shown(writer, second.credential)
    assert writer.run_sync(lambda c: joining.promote(c, following))
    assert in_force(writer) == {parse_prefix(second.credential)}
    register(writer, row, "id-2", incarnation=3)  # another machine, with a clock of its own


def test_rotation_keeps_the_old_credential_until_the_new_one_is_used(
    writer: RegistryWriter,
) -> None:
    first = join(writer, invite(writer))
    present = shown(writer, first.credential)
    register(writer, present.row_id, "id-1")
    lost = writer.run_sync(lambda c: joining.rotate(c, present))
    kept = writer.run_sync(lambda c: joining.rotate(c, present))
    assert in_force(writer) == {parse_prefix(first.credential), parse_prefix(kept.credential)}
    assert parse_prefix(lost.credential) not in in_force(writer)
    following = shown(writer, kept.credential)
    assert writer.run_sync(lambda c: joining.promote(c, following))
    assert not writer.run_sync(lambda c: joining.promote(c, following))
    assert in_force(writer) == {parse_prefix(kept.credential)}
    [info] = writer.run_sync(agents.list_agents)
    assert (info.record.agent_id, info.record.lease_id) == ("id-1", "l1"), "the lease goes on"
    with pytest.raises(CredentialRefused, match="replaced"):
        writer.run_sync(lambda c: joining.rotate(c, present))


def test_rotating_with_the_next_credential_ends_the_present_one(writer: RegistryWriter) -> None:
    first = join(writer, invite(writer))
    second = writer.run_sync(lambda c: joining.rotate(c, shown_in(c, first.credential)))
    third = writer.run_sync(lambda c: joining.rotate(c, shown_in(c, second.credential)))
    assert in_force(writer) == {parse_prefix(second.credential), parse_prefix(third.credential)}


def shown_in(connection: object, credential: str) -> ShownCredential:
    return ShownCredential(1, parse_prefix(credential) or "")


def test_joining_again_needs_a_token_for_the_same_agent(writer: RegistryWriter) -> None:
    first = join(writer, invite(writer))
    present = shown(writer, first.credential)
    other = invite(writer, "other")
    with pytest.raises(NameTaken, match="'mac' already"):
        join(writer, other, present=present)
    assert join(writer, invite(writer), "renamed host", present=present).name == "mac"
    assert join(writer, other).name == "other"


def test_revoking_ends_both_credentials_and_what_invites(writer: RegistryWriter) -> None:
    first = join(writer, invite(writer))
    writer.run_sync(lambda c: joining.rotate(c, shown_in(c, first.credential)))
    token = invite(writer, "mac")
    writer.run_sync(lambda c: agents.revoke_agent(c, "mac"))
    assert writer.run_sync(lambda c: joining.withdraw(c, "mac")) == 1
    assert in_force(writer) == set()
    with pytest.raises(TokenRefused):
        join(writer, token)
    with pytest.raises(CredentialRefused):
        writer.run_sync(lambda c: joining.rotate(c, shown_in(c, first.credential)))
    assert join(writer, invite(writer, "mac")).name == "mac"  # and it may come back


def test_an_invitation_is_withdrawn_by_its_prefix_or_itself(writer: RegistryWriter) -> None:
    for form in (str, lambda token: token[:-41], lambda token: token.split("-")[2]):
        token = invite(writer)
        which = form(token)
        assert writer.run_sync(lambda c, which=which: joining.withdraw(c, which)) == 1  # type: ignore[misc]  # bound now
        with pytest.raises(TokenRefused):
            join(writer, token)


@pytest.mark.parametrize("lasts_s", [0, -1, 8 * 86400])
def test_an_invitation_does_not_last_forever(writer: RegistryWriter, lasts_s: int) -> None:
    with pytest.raises(InvalidValue, match="7 days"):
        writer.run_sync(lambda c: joining.invite(c, None, lasts_s))


def test_old_invitations_are_forgotten(writer: RegistryWriter) -> None:
    invite(writer, at=0)
    invite(writer, at=3 * 86400)
    assert len(writer.run_sync(lambda c: c.execute(select(invitations)).all())) == 1


class Joining(RuleBasedStateMachine):
    """Tokens and rotations in any order, against a model that keeps what must hold."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile  # noqa: PLC0415 - for this machine alone

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "models.db"
        install(path)
        self.writer = RegistryWriter(f"sqlite:///{path}")
        self.now = 0.0
        self.tokens: dict[str, float] = {}
        self.used: set[str] = set()
        self.present: str | None = None
        self.next: str | None = None

    def teardown(self) -> None:
        self.writer.close()
        self.folder.cleanup()

    @rule(lasts_s=st.integers(1, 20))
    def invite(self, lasts_s: int) -> None:
        token, shown_ = self.writer.run_sync(
            lambda c: joining.invite(c, "mac", lasts_s, now=lambda: self.now)
        )
        self.tokens[token] = shown_.expires_at

    @rule(seconds=st.integers(0, 15))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(data=st.data(), shows=st.booleans())
    def join(self, data: st.DataObject, shows: bool) -> None:
        if not self.tokens:
            return
        token = data.draw(st.sampled_from(sorted(self.tokens)))
        present = None if self.present is None or not shows else shown_in(None, self.present)
        may = token not in self.used and self.now < self.tokens[token]
        try:
            joined = join(self.writer, token, "host", present, self.now)
        except TokenRefused:
            assert not may
            return
        assert may
        self.used.add(token)
        self._given(joined.credential)

    @rule(uses_next=st.booleans(), is_lost=st.booleans())
    def rotate(self, uses_next: bool, is_lost: bool) -> None:
        shows = self.next if uses_next else self.present
        if shows is None:
            return
        joined = self.writer.run_sync(lambda c: joining.rotate(c, shown_in(c, shows)))
        if uses_next:
            self.present = self.next
        self.next = None if is_lost else joined.credential
        self.lost = joined.credential if is_lost else None

    @rule()
    def use_next(self) -> None:
        if self.next is not None:
            following = shown_in(None, self.next)
            assert self.writer.run_sync(lambda c: joining.promote(c, following))
            self.present, self.next = self.next, None

    def _given(self, credential: str) -> None:
        if self.present is None:
            self.present = credential
        else:
            self.next = credential

    @invariant()
    def what_the_agent_holds_works_and_hardly_more(self) -> None:
        found = in_force(self.writer)
        held = {parse_prefix(c) for c in (self.present, self.next) if c is not None}
        assert held <= found
        assert len(found) <= 2


TestJoining = Joining.TestCase
TestJoining.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
