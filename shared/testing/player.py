"""Carries out the steps of an answer on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.testing.journal import Journal, Seen
from shared.testing.load import Tally
from shared.testing.personas import SERVER
from shared.testing.steps import Crash, Cut, End, Head, Headers, Raw, Send, Step, Steps, Wait
from shared.testing.wire import Exchange


class Player:
    """Sends, waits, cuts and crashes, and keeps the count."""

    def __init__(
        self, headers: Headers, journal: Journal, tally: Tally, *, crash: Callable[[Crash], None]
    ) -> None:
        """Take the headers of every answer and what to call for a crash."""
        self._headers = (("server", SERVER), *headers)
        self._journal = journal
        self._tally = tally
        self._crash = crash

    async def play(self, steps: Steps, exchange: Exchange, seen: Seen | None) -> bool:
        """Carry out the steps; tells whether the answer came to its own end.

        Raises:
            ConnectionResetError: the client is gone.
        """
        for step in steps:
            if isinstance(step, Wait):
                await _wait(step.seconds)
            elif isinstance(step, Cut):
                exchange.close(reset=step.reset)
                return False
            elif isinstance(step, Crash):
                self._crash(step)
                return False
            else:
                await self._send(step, exchange, seen)
        return True

    async def _send(self, step: Step, exchange: Exchange, seen: Seen | None) -> None:
        if isinstance(step, Head):
            headers = [*self._headers, *step.headers]
            self._note_head(step.status, seen)
            await exchange.send_head(step.status, headers, length=step.length, drip_s=step.drip_s)
        elif isinstance(step, Send):
            await exchange.send_body(step.data)
            self._tally.generation_tokens += step.tokens
            if seen is not None:
                seen.events += 1
                self._journal.changed()
        elif isinstance(step, Raw):
            await exchange.send_raw(step.data)
        elif isinstance(step, End):
            await exchange.end_body()

    def _note_head(self, status: int, seen: Seen | None) -> None:
        if seen is not None:
            seen.status = status
            seen.first_byte_s = self._journal.clock()
            self._journal.changed()


async def _wait(seconds: float | None) -> None:
    if seconds is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(seconds)
