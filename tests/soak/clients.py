"""Clients of all manners: patient and slow ones, and those that leave when they like."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tests.soak.accounts import Account, Ending
from tests.soak.asks import BAD, Ask, make_ask
from tests.soak.judge import Wrong, judge
from tests.soak.plan import PATIENCE_S
from tests.soak.wire import Broken, Late, Line, render

_HEARD_S = 1.0  # by then a router that works has begun with a request
_ROUND_S = 20.0
_SURGE_S = 5.0


@dataclass(slots=True)
class Desk:
    """What all clients share: where to, with which keys, and what they have seen."""

    port: int
    keys: dict[str, str]
    seed: int
    began: float
    accounts: dict[str, Account] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    manners: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def account(self, api: str, manner: str, *, is_http: bool = True) -> Account:
        """Open an account for a request to come."""
        made = Account(
            request_id=f"soak-{next(self._numbers)}", api=api, manner=manner, is_http=is_http
        )
        self.accounts[made.request_id] = made
        self.manners[manner] += 1
        return made

    def complain(self, account: Account, text: str) -> None:
        """Note what must not be."""
        what = f"{account.request_id} ({account.api}, {account.manner})"
        self.complaints.append(f"{what}: {text}")


class Client:
    """One client: one request after the other, each in a manner of its own."""

    def __init__(self, desk: Desk, number: int) -> None:
        self._desk = desk
        self._rng = Random(f"{desk.seed}-{number}")
        self._line: Line | None = None
        self._manners: dict[str, tuple[int, Callable[[Ask, Account], Awaitable[None]]]] = {
            "patient": (45, self._patient),
            "reads slowly": (4, self._read_slowly),
            "writes slowly": (3, self._write_slowly),
            "leaves at once": (5, self._leave_at_once),
            "leaves while it waits": (12, self._leave_waiting),
            "leaves in the middle": (10, self._leave_in_the_middle),
            "leaves before it asked": (4, self._leave_before),
            "half-closes": (3, self._half_close),
            "idles": (1, self._idle),
            "asks badly": (8, self._ask_badly),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until told to stop; the last request is brought to its end."""
        shares = {name: share for name, (share, _) in self._manners.items()}
        while not stop.is_set():
            await asyncio.sleep(self._rng.expovariate(1 / self._pause_s()))
            manner = self._rng.choices([*shares], [*shares.values()])[0]
            await self._ask(manner)
        self._hang_up()

    def _pause_s(self) -> float:
        """Return the mean pause between two requests: calm for a while, then a surge."""
        since = asyncio.get_running_loop().time() - self._desk.began
        return 0.03 if since % _ROUND_S < _SURGE_S else 0.6

    async def _ask(self, manner: str) -> None:
        model = "long" if manner == "reads slowly" else None
        ask = make_ask(self._rng, self._desk.keys, model=model)
        is_http = manner not in {"idles", "leaves before it asked"}
        account = self._desk.account(ask.api, manner, is_http=is_http)
        try:
            await self._manners[manner][1](ask, account)
        except Wrong as wrong:
            account.ending = Ending.LEFT  # its rows are judged all the same
            self._desk.complain(account, str(wrong))
        except Late:
            account.ending = Ending.LEFT
            self._desk.complain(account, f"nothing came for {PATIENCE_S:.0f} s")
        except Broken:
            account.ending = Ending.LEFT
            self._desk.complain(account, "the router closed before the answer was whole")
        else:
            return
        self._hang_up()

    async def _open(self, *, is_narrow: bool = False) -> Line:
        """Return a new connection, which takes the place of the one before."""
        self._hang_up()
        self._line = await Line.open(self._desk.port, is_narrow=is_narrow)
        return self._line

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    async def _sent(self, ask: Ask, account: Account) -> Line:
        """Send a request, on the connection that is there if there is one."""
        line = self._line or await self._open()
        await line.send(_rendered(ask, account))
        return line

    async def _finish(self, line: Line, ask: Ask, account: Account, pause_s: float = 0.0) -> None:
        head = await line.head()
        account.was_heard = True
        pieces = []
        async for piece in line.pieces(head):
            pieces.append(piece)
            if pause_s:
                await asyncio.sleep(pause_s)
        judge(account, head, b"".join(pieces), is_stream=ask.is_stream, has_usage=ask.has_usage)
        if head.headers.get("connection", "").lower() == "close":
            self._hang_up()

    async def _patient(self, ask: Ask, account: Account) -> None:
        await self._finish(await self._sent(ask, account), ask, account)

    async def _read_slowly(self, ask: Ask, account: Account) -> None:
        line = await self._open(is_narrow=True)
        await line.send(_rendered(ask, account))
        await asyncio.sleep(self._rng.uniform(0, 2))
        await self._finish(line, ask, account, pause_s=0.0005)
        self._hang_up()

    async def _write_slowly(self, ask: Ask, account: Account) -> None:
        line, data = await self._open(), _rendered(ask, account)
        step = len(data) // 5 + 1
        for at in range(0, len(data), step):
            await line.send(data[at : at + step])
            await asyncio.sleep(self._rng.uniform(0, 0.2))
        await self._finish(line, ask, account)

    async def _leave_at_once(self, ask: Ask, account: Account) -> None:
        await self._sent(ask, account)
        self._leave(account)

    async def _leave_waiting(self, ask: Ask, account: Account) -> None:
        await self._sent(ask, account)
        waited_s = self._rng.choice((0.001, 0.01, 0.03, 0.1, 0.4, 1.2)) * self._rng.uniform(
            0.5, 1.5
        )
        await asyncio.sleep(waited_s)
        account.was_heard = waited_s > _HEARD_S
        self._leave(account)

    async def _leave_in_the_middle(self, ask: Ask, account: Account) -> None:
        line = await self._sent(ask, account)
        head = await line.head()
        account.was_heard = head.status == 200
        count = self._rng.randint(0, 12)
        async for _ in line.pieces(head):
            count -= 1
            if count < 0:
                break
        self._leave(account)

    async def _leave_before(self, ask: Ask, account: Account) -> None:
        line, data = await self._open(), _rendered(ask, account)
        await line.send(data[: self._rng.randint(0, len(data) - 1)])
        await asyncio.sleep(self._rng.uniform(0, 0.5))
        self._leave(account)

    async def _half_close(self, ask: Ask, account: Account) -> None:
        """Close our direction: a router may take that for a client that left, and ours does."""
        line = await self._open()
        await line.send(_rendered(ask, account))
        await asyncio.sleep(self._rng.uniform(0, 0.2))
        line.end_sending()
        await line.closed()
        self._leave(account)

    async def _idle(self, ask: Ask, account: Account) -> None:
        await self._open()
        await asyncio.sleep(self._rng.uniform(1, 4))
        self._leave(account)

    async def _ask_badly(self, ask: Ask, account: Account) -> None:
        name = self._rng.choice([*BAD])
        bad, line = BAD[name], await self._open()
        account.manner, account.is_http = name, not bad.raw
        account.api = "chat"
        extra = bad.headers or {}
        data = bad.raw or render(
            bad.body,
            path="/v1/chat/completions",
            request_id=account.request_id,
            method=bad.method,
            **{"key": ask.key, **extra},
        )
        sending = asyncio.ensure_future(line.send(data))
        try:
            head = await line.head()
            body = b"".join([piece async for piece in line.pieces(head)])
        finally:
            await sending
        judge(account, head, body, is_stream=False, has_usage=False)
        is_shed = head.status >= 429 and name == "no messages"  # it is up to an engine to refuse it
        if head.status != bad.status and not is_shed:
            raise Wrong(f"status {head.status} where {bad.status} is due")
        self._hang_up()

    def _leave(self, account: Account) -> None:
        account.ending = Ending.LEFT
        self._hang_up()


def _rendered(ask: Ask, account: Account) -> bytes:
    return render(ask.body, path=ask.path, request_id=account.request_id, key=ask.key)
