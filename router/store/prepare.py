"""What a router does with its registry before it serves."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from router.store.cluster import admit_cluster
from router.store.migrate import migrate
from router.store.tables import meta
from router.store.writer import RegistryWriter

PACKAGED = Path(__file__).with_name("seed.yaml")
_SEEDED = "seeded:packaged"


def prepare(url: str, *, has_cluster: bool = False) -> bool:
    """Migrate the registry and add what a fresh one starts with; nothing the user removed returns.

    The cluster does: its row is there for as long as the settings name it.

    Args:
        url: SQLAlchemy's, of the registry.
        has_cluster: the settings name an llm-d cluster, which needs a row.

    Returns:
        Whether the cluster has one.

    Raises:
        StoreError: the registry can't be read or written.
    """
    migrate(url)
    writer = RegistryWriter(url)
    try:
        writer.run_sync(_seed_packaged)
        return has_cluster and writer.run_sync(admit_cluster)
    finally:
        writer.close()


def _seed_packaged(connection: Connection) -> None:
    """Add what is packaged, unless just this file was added before: most starts need no YAML."""
    digest = sha256(PACKAGED.read_bytes()).hexdigest()
    if connection.scalar(select(meta.c.value).where(meta.c.key == _SEEDED)) == digest:
        return
    from router.store.seed import read_seed, seed  # noqa: PLC0415 - see above

    seed(connection, read_seed(PACKAGED), only_once=True)
    connection.execute(delete(meta).where(meta.c.key == _SEEDED))
    connection.execute(insert(meta).values(key=_SEEDED, value=digest))
