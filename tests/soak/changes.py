"""An operator beside the load: changes the registry, and holds its lock for a while."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from random import Random

from sqlalchemy import Connection

from router.store.catalog import get_provider, update_provider
from router.store.writer import RegistryWriter
from tests.soak.plan import ENGINES
from tests.soak.programs import is_set_within

_LIMITS = (1, 2, 4, 8, None)
_LONGEST_LOCK_S = 1.5


async def operate(store_url: str, rng: Random, stop: asyncio.Event) -> None:
    """Change limits of endpoints, again and again, until told to stop."""
    writer = RegistryWriter(store_url)
    try:
        while not await is_set_within(stop, rng.uniform(1, 8)):
            name, limit = rng.choice(ENGINES).name, rng.choice(_LIMITS)
            held_s = rng.uniform(0, _LONGEST_LOCK_S) if rng.random() < 0.3 else 0.0
            await writer.run(partial(_change, name=name, limit=limit, held_s=held_s))
    finally:
        writer.close()


def _change(connection: Connection, *, name: str, limit: int | None, held_s: float) -> None:
    """Set a limit; nobody else can write for as long as this takes."""
    update_provider(connection, replace(get_provider(connection, name), max_in_flight=limit))
    time.sleep(held_s)
