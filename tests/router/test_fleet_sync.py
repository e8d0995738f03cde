"""Following the registry: the last good snapshot stays."""

from __future__ import annotations

import pytest

from router.domain import Catalog, LeaseBook
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from router.fleet.sync import RegistrySync
from router.ports import RegistrySource
from tests.router.test_fleet_membership import FakeClock, record


class FakeRegistry(RegistrySource):
    """A registry in memory; `problem` is what reading it fails with."""

    def __init__(self) -> None:
        self.version = 1
        self.problem: OSError | None = None
        self.fails_at_leases = False
        self.asked: list[int | None] = []
        self.is_closed = False

    def catalog(self, known_version: int | None) -> Catalog | None:
        self.asked.append(known_version)
        if self.problem is not None and not self.fails_at_leases:
            raise self.problem
        return None if known_version == self.version else Catalog(version=self.version)

    def leases(self, known_version: int | None) -> LeaseBook | None:
        if self.problem is not None:
            raise self.problem
        book = LeaseBook(self.version, (record(),))
        return None if known_version == self.version else book

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(Membership(FakeClock(), 30.0), lambda _: None)


async def test_changes_are_taken_once(fleet: Fleet) -> None:
    registry = FakeRegistry()
    sync = RegistrySync(fleet, registry)
    await sync.load()
    assert fleet.catalog.version == 1
    assert fleet.resolve("tiny").candidates
    first = fleet.catalog
    await sync.look()
    assert fleet.catalog is first
    registry.version = 2
    await sync.look()
    assert fleet.catalog.version == 2
    assert registry.asked == [None, 1, 1]
    await sync.close()
    assert registry.is_closed


@pytest.mark.parametrize("fails_at_leases", [True, False])
async def test_the_last_good_snapshot_stays(fleet: Fleet, fails_at_leases: bool) -> None:
    registry = FakeRegistry()
    sync = RegistrySync(fleet, registry)
    await sync.load()
    registry.problem, registry.fails_at_leases = OSError("gone"), fails_at_leases
    registry.version = 2
    await sync.look()
    await sync.look()
    assert (sync.problem, sync.failures) == ("gone", 2)
    assert fleet.catalog.version == 1
    registry.problem = None
    await sync.look()
    assert sync.problem is None
    assert fleet.catalog.version == 2
    await sync.close()


async def test_nothing_to_start_from_is_an_error(fleet: Fleet) -> None:
    registry = FakeRegistry()
    registry.problem = OSError("gone")
    sync = RegistrySync(fleet, registry)
    with pytest.raises(OSError, match="gone"):
        await sync.load()
    await sync.close()
