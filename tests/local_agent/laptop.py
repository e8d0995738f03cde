"""A laptop and its agent's care, both moved by a test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from local_agent.intake import Intake
from local_agent.power_care import PowerCare
from local_agent.power_policy import PowerPolicy
from tests.local_agent.test_power_policy import seen

Going = Callable[[float], Awaitable[None]]
Back = Callable[[], Awaitable[None]]


class Awake:
    """A host that can be kept awake."""

    def __init__(self) -> None:
        self.is_held = False

    async def hold(self) -> None:
        self.is_held = True

    async def release(self) -> None:
        self.is_held = False


class News:
    """A system that announces what a test says, and what became of it."""

    def __init__(self) -> None:
        self.unheard: str | None = None
        self.is_defect = False
        self.listened = 0
        self.going: Going | None = None

    async def listen(self, going: Going, back: Back) -> str | None:
        self.listened += 1
        if self.is_defect:
            raise ZeroDivisionError
        if self.unheard is None:
            self.going = going
            await anyio.sleep_forever()
        return self.unheard


class Router:
    """A router that is left and joined."""

    def __init__(self) -> None:
        self.is_left = False

    async def leave(self) -> None:
        self.is_left = True

    def rejoin(self) -> None:
        self.is_left = False


class Laptop:
    """A laptop and its agent's care, both moved by a test."""

    def __init__(self) -> None:
        self.reading = seen()
        self.policy = PowerPolicy()
        self.slept_s = 0.0
        self.now = 0.0
        self.is_busy = False
        self.told = 0
        self.awake = Awake()
        self.system = News()
        self.router = Router()
        self.intake = Intake(self._notify)
        self.care = PowerCare(
            read=lambda: self.reading,
            policy=lambda: self.policy,
            intake=self.intake,
            is_busy=lambda: self.is_busy,
            awake=self.awake,
            news=self.system,
            router=self.router,
            asleep=lambda: self.slept_s,
            clock=lambda: self.now,
            notify=self._notify,
            sleep=self._sleep,
        )
        self.looks = anyio.Event()

    def _notify(self) -> None:
        self.told += 1

    async def _sleep(self, _: float) -> None:
        self.looks.set()
        await anyio.sleep_forever()

    def reason(self) -> str | None:
        """Return why nothing new is taken."""
        return self.intake.reason

    def is_left(self) -> bool:
        """Tell whether the router was left."""
        return self.router.is_left

    def is_held(self) -> bool:
        """Tell whether it is kept awake."""
        return self.awake.is_held

    async def news(self) -> bool:
        """Look once; tell whether the router heard of it at once."""
        before = self.told
        await self.care.look()
        return self.told > before
