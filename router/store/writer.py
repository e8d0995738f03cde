"""Writing the registry: one thread, one transaction at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection

from router.store.database import Pinned
from router.store.errors import Refusal, StoreError, translated

T = TypeVar("T")


class RegistryWriter:
    """Runs functions, each in one transaction, in the only thread that writes."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; `url` is SQLAlchemy's."""
        self._pinned = Pinned(url, is_writer=True)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry-writer")

    async def run(self, write: Callable[[Connection], T]) -> T:
        """Run `write` in a transaction, commit, and return its result.

        A caller that is cancelled leaves; the transaction still ends, either way whole.

        Raises:
            StoreError: the registry can't be written; nothing was. The next call tries anew.
            Refusal: from `write`; nothing was written.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, write)

    def run_sync(self, write: Callable[[Connection], T]) -> T:
        """Do as `run`, for callers without an event loop."""
        return self._executor.submit(self._run, write).result()

    def close(self) -> None:
        """Let what was handed in finish, then close the connection."""
        self._executor.shutdown(wait=True)
        self._pinned.drop()

    def _run(self, write: Callable[[Connection], T]) -> T:
        try:
            with translated():
                connection, _ = self._pinned.get()
                with connection.begin():
                    return write(connection)
        except Refusal:
            raise
        except StoreError:
            self._pinned.drop()
            raise
