"""Watches what the host runs on, and acts: nothing new is taken, a Mac is kept awake, a wake is told.

Where the system announces sleep, what runs is finished first, and the lease given back. Elsewhere it looks
at the lid every few seconds. That the host has slept is seen afterwards, by the clocks, in any case.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio
import anyio.to_thread

from local_agent.domain import HostFacts, WorkerState
from local_agent.host.awake import Caffeinate, NoAssertion, asleep_clock
from local_agent.host.power import power_reader
from local_agent.host.sleep import sleep_news
from local_agent.intake import Intake
from local_agent.ports import KeepAwake, Presence, SleepNews
from local_agent.power_policy import (
    GOING_TO_SLEEP,
    HostPower,
    PowerCore,
    PowerPolicy,
    Verdict,
)
from local_agent.supervisor import Supervisor
from shared.contracts.agents import Power
from shared.kit.clock import Clock, monotonic
from shared.kit.logs import get_logger

_EVERY_S = 5.0
_SLEPT_S = 2.0
_LISTEN_AGAIN_S = 60.0
_GOODBYE_S = 2.0
"""Of the time before sleep: the router hears of it then."""
_ON_THEIR_WAY = frozenset({WorkerState.PULLING, WorkerState.STARTING, WorkerState.LOADING})


class PowerCare:
    """Holds the intake to the policy; `power` is what was read last."""

    def __init__(
        self,
        *,
        read: Callable[[], HostPower],
        policy: Callable[[], PowerPolicy],
        intake: Intake,
        is_busy: Callable[[], bool],
        awake: KeepAwake,
        news: SleepNews,
        router: Presence,
        asleep: Clock,
        clock: Clock,
        notify: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Take what it needs.

        Args:
            read: reads the host; blocks, and runs in a thread.
            policy: what the owner wants, as it is now.
            intake: who lets requests in.
            is_busy: whether there is work for which a Mac should stay awake.
            awake: keeps it awake.
            news: tells before the host sleeps.
            router: is left before that, and joined again afterwards.
            asleep: for how long the host has slept, see `asleep_clock`.
            clock: a monotonic one.
            notify: lets the router hear at once how the agent is.
            sleep: waits between two looks.
        """
        self.power = Power()
        self._read = read
        self._policy = policy
        self._intake = intake
        self._is_busy = is_busy
        self._awake = awake
        self._news = news
        self._router = router
        self._asleep = asleep
        self._clock = clock
        self._notify = notify
        self._sleep = sleep
        self._core = PowerCore()
        self._verdict = Verdict()
        self._slept_s = asleep()
        self._looking = anyio.Lock()
        self._log = get_logger("power")

    async def run(self) -> None:
        """Look and listen until cancelled; then the host may sleep again."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                while True:
                    await self._try_to_look()
                    await self._sleep(_EVERY_S)
        finally:
            with anyio.CancelScope(shield=True):
                await self._awake.release()

    async def _listen(self) -> None:
        """Listen for the word that the host sleeps; while that fails the looks at the lid are left."""
        while True:
            try:
                unheard = await self._news.listen(self.before_sleep, self.after_sleep)
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
                self._log.exception("sleep_news_failed")
            else:
                if unheard is not None:
                    self._log.info("sleep_is_not_announced", reason=unheard)
                    return
                self._log.warning("sleep_news_ended")
            await self._sleep(_LISTEN_AGAIN_S)

    async def before_sleep(self, limit_s: float) -> None:
        """Take nothing new, finish what runs, and leave the router; within `limit_s` seconds."""
        if not self._policy().drain_before_sleep:
            return
        self._log.info("host_goes_to_sleep", in_hand=self._intake.in_hand)
        self._core.go(self._clock())
        self._verdict = Verdict(reason=GOING_TO_SLEEP)
        self._intake.hold(GOING_TO_SLEEP)
        with anyio.move_on_after(max(0.0, limit_s - _GOODBYE_S)):
            await self._intake.finished()
        await self._router.leave()
        self._log.info("host_may_sleep", unfinished=self._intake.in_hand)

    async def after_sleep(self) -> None:
        """Take work again, and join the router, at once."""
        self._core.wake()
        await self._try_to_look()

    async def _try_to_look(self) -> None:
        """Look; a defect there must not end what clients use, nor keep the agent from taking work."""
        try:
            await self.look()
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
            self._log.exception("power_care_failed")
            if not self._core.is_going(self._clock()):
                self._intake.hold(None)
                self._router.rejoin()

    async def look(self) -> None:
        """Read the host once, and act on it; a reading is never overtaken by an older one."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        has_slept = self._has_slept()
        seen = await anyio.to_thread.run_sync(self._read)
        policy = self._policy()
        verdict = self._core.advance(policy, seen, self._clock())
        is_news = has_slept or _is_news(self.power, seen.power) or verdict != self._verdict
        if verdict != self._verdict:
            self._log.info("power_policy", reason=verdict.reason, limit=verdict.limit)
        self.power, self._verdict = seen.power, verdict
        self._intake.hold(verdict.reason, limit=verdict.limit)
        if not self._core.is_going(self._clock()):
            self._router.rejoin()
        if is_news:
            self._notify()
        if policy.keep_awake and self._is_busy():
            await self._awake.hold()
        else:
            await self._awake.release()

    def _has_slept(self) -> bool:
        """Tell whether the host has slept since the last look; the lease may have run out meanwhile."""
        slept_s = self._asleep()
        new_s, self._slept_s = slept_s - self._slept_s, slept_s
        if new_s <= _SLEPT_S:
            return False
        self._log.info("host_woke", slept_s=round(new_s))
        return True


def _is_news(before: Power, now: Power) -> bool:
    """Tell whether the router should hear of it before the next heartbeat: a percent less is none."""
    nothing = {"battery_percent": None}
    return before.model_copy(update=nothing) != now.model_copy(update=nothing)


def care_for(
    host: HostFacts,
    intake: Intake,
    supervisor: Supervisor,
    policy: Callable[[], PowerPolicy],
    *,
    router: Presence,
    env: Mapping[str, str],
) -> PowerCare:
    """Return the care of this host; nothing is read or started before `run`.

    `env` is the agent's environment.
    """

    def is_busy() -> bool:
        return intake.in_hand > 0 or any(
            view.state in _ON_THEIR_WAY for view in supervisor.workers()
        )

    return PowerCare(
        read=power_reader(host.platform),
        policy=policy,
        intake=intake,
        is_busy=is_busy,
        awake=Caffeinate() if host.platform == "darwin" else NoAssertion(),
        news=sleep_news(host.platform, env),
        router=router,
        asleep=asleep_clock(),
        clock=monotonic,
        notify=supervisor.notify,
    )
