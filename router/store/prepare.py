"""What a router does with its registry before it serves."""

from __future__ import annotations

from router.store.migrate import migrate
from router.store.seed import read_seed, seed
from router.store.writer import RegistryWriter


def prepare(url: str) -> None:
    """Migrate the registry and add what a fresh one starts with; nothing the user removed returns.

    Raises:
        StoreError: the registry can't be read or written.
    """
    migrate(url)
    writer = RegistryWriter(url)
    try:
        writer.run_sync(lambda connection: seed(connection, read_seed(), only_once=True))
    finally:
        writer.close()
