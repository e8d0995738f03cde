"""The registry as commands use it: one read, or one write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from router.settings import Settings, load_settings
from router.store.cluster import admit_cluster
from router.store.database import Connection, file_of
from router.store.migrate import migrate
from router.store.prepare import prepare
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter

T = TypeVar("T")


def read(fetch: Callable[[Connection], T], settings: Settings | None = None) -> T:
    """Return what `fetch` finds in the registry.

    Raises:
        StoreError: there is no registry yet, or it can't be read.
    """
    reader = RegistryReader((settings or load_settings()).store_url)
    try:
        return reader.run(fetch)
    finally:
        reader.close()


def write(
    change: Callable[[Connection], T],
    settings: Settings | None = None,
    *,
    is_seeded: bool = True,
) -> T:
    """Change the registry, which is made, and seeded unless told not to, if it is not there yet.

    Raises:
        StoreError: it can't be written.
        Refusal: from `change`.
    """
    found = settings or load_settings()
    url, has_cluster = found.store_url, found.llmd_endpoint is not None
    path = file_of(url)
    if path is not None and not path.exists():
        if is_seeded:
            prepare(url)
        else:
            migrate(url)

    def changed(connection: Connection) -> T:
        if has_cluster and is_seeded:
            admit_cluster(connection)
        return change(connection)

    writer = RegistryWriter(url)
    try:
        return writer.run_sync(changed)
    finally:
        writer.close()
