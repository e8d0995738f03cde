"""What the agent does when the system says that it will sleep, and when it does not say so."""

from __future__ import annotations

import anyio
import pytest
from structlog.testing import capture_logs

from local_agent.errors import AgentDraining
from local_agent.power_policy import AWAKE_AGAIN_S, GOING_TO_SLEEP, HostPower, PowerPolicy
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.local_agent.harness import CHAT, MESSAGES, StartAgent, until
from tests.local_agent.laptop import Laptop
from tests.local_agent.test_power_policy import seen


async def test_before_it_sleeps_the_agent_finishes_and_leaves_its_router() -> None:
    laptop = Laptop()
    async with anyio.create_task_group() as tasks:
        with laptop.intake.work():
            tasks.start_soon(laptop.care.before_sleep, 30.0)
            await until(lambda: laptop.reason() == GOING_TO_SLEEP)
            assert not laptop.is_left()  # a request still runs
            with pytest.raises(AgentDraining, match="about to sleep"), laptop.intake.work():
                pass
            await laptop.care.look()  # what it looks at meanwhile changes nothing
            assert laptop.reason() == GOING_TO_SLEEP
        await until(laptop.is_left)
    await laptop.care.after_sleep()
    assert laptop.reason() is None
    assert not laptop.is_left()


async def test_a_request_that_does_not_end_does_not_keep_it_from_sleep() -> None:
    laptop = Laptop()
    with laptop.intake.work(), anyio.fail_after(30):
        await laptop.care.before_sleep(0.0)
    assert laptop.is_left()


async def test_a_wake_that_was_not_announced() -> None:
    laptop = Laptop()
    await laptop.care.before_sleep(30.0)
    laptop.slept_s, laptop.now = 600.0, 5.0
    await laptop.care.look()
    assert laptop.is_left()  # a Mac that wakes for its mail sleeps on at once
    laptop.now = AWAKE_AGAIN_S
    await laptop.care.look()
    assert laptop.reason() is None
    assert not laptop.is_left()


async def test_who_does_not_want_it_is_not_drained_before_sleep() -> None:
    laptop = Laptop()
    laptop.policy = PowerPolicy(drain_before_sleep=False)
    with laptop.intake.work():
        await laptop.care.before_sleep(30.0)
    assert laptop.reason() is None
    assert not laptop.is_left()


@pytest.mark.parametrize(
    ("unheard", "is_defect", "event"),
    [
        ("there is no system bus (D-Bus)", False, "sleep_is_not_announced"),
        (None, True, "sleep_news_failed"),
    ],
)
async def test_without_announcements_the_lid_still_counts(
    unheard: str | None, is_defect: bool, event: str
) -> None:
    laptop = Laptop()
    laptop.system.unheard, laptop.system.is_defect = unheard, is_defect
    laptop.reading = seen(lid="closed")
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(laptop.care.run)
            await until(lambda: event in {line["event"] for line in logs})
            await until(lambda: laptop.reason() == "the lid is closed")
            tasks.cancel_scope.cancel()
    assert laptop.system.listened == 1


async def test_a_defect_in_listening_is_not_for_ever() -> None:
    laptop = Laptop()
    laptop.system.is_defect = True

    async def wait(limit_s: float) -> None:
        if limit_s < 60:
            await anyio.sleep_forever()
        laptop.system.is_defect = False

    laptop.care._sleep = wait
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(laptop.care.run)
            await until(lambda: laptop.system.going is not None)
            assert laptop.system.going is not None
            await laptop.system.going(30.0)
            assert laptop.reason() == GOING_TO_SLEEP
            tasks.cancel_scope.cancel()
    assert [line["event"] for line in logs].count("sleep_news_failed") == 1


async def test_a_defect_in_reading_does_not_end_a_drain_before_sleep() -> None:
    laptop = Laptop()
    await laptop.care.before_sleep(30.0)

    def broken() -> HostPower:
        raise ZeroDivisionError

    laptop.care._read = broken
    await laptop.care._try_to_look()
    assert laptop.reason() == GOING_TO_SLEEP
    await laptop.care.after_sleep()
    assert laptop.reason() is None
    assert not laptop.is_left()


async def test_an_agent_before_sleep_streams_on_and_refuses_what_is_new(
    start_agent: StartAgent,
) -> None:
    options = EngineOptions(models=("engine/tiny",), latency=Latency(itl_s=0.01), tokens=40)
    async with start_agent(engine=options) as agent:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        care, lines = agent.agent._power, []
        async with (
            anyio.create_task_group() as tasks,
            agent.client.stream("POST", CHAT, json=body) as answer,
        ):
            parts = answer.aiter_lines()
            lines.append(await anext(parts))
            tasks.start_soon(care.before_sleep, 30.0)
            await until(lambda: agent.agent.intake.reason is not None)
            refused = await agent.client.post(CHAT, json={**body, "stream": False})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            lines += [line async for line in parts]
        assert "data: [DONE]" in lines
        await care.after_sleep()
        assert (await agent.client.post(CHAT, json={**body, "stream": False})).status_code == 200
