"""The limits of an attempt: each on its own, per deployment, as `iir models add` sets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.settings import load_settings
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, OneEngine, chat, error_event_of, error_of, one_engine, settled
from tests.router.test_cancellation import mute_listener

LIMIT_S = 0.15
Add = Callable[..., None]


@pytest.fixture
def options() -> EngineOptions:
    """Return an engine whose stream takes 0.5 s, event by event."""
    return EngineOptions(models=("tiny", "limited"), tokens=10, latency=Latency(itl_s=0.05))


async def iir(router: RunningRouter, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run a command on the router's registry, as a user would."""
    monkeypatch.setenv("IIR_HOME", str(router.settings.iir_home))
    run = partial(CliRunner().invoke, app, arguments)
    result = await asyncio.get_running_loop().run_in_executor(None, run)
    assert result.exit_code == 0, result.output
    await router.catch_up()


async def add_limited(
    scene: OneEngine, monkeypatch: pytest.MonkeyPatch, *limits: str, provider: str = "engine"
) -> None:
    """Add the model `limited`; its sibling `tiny` has the router's limits."""
    await iir(
        scene.router, monkeypatch, "models", "add", "limited", "--provider", provider, *limits
    )


async def timed(scene: OneEngine, model: str, *, stream: bool) -> tuple[int, str | None, float]:
    """Return the status, the code of the error if there is one, and how long it took."""
    began = monotonic()
    answer = await scene.client.post(CHAT, json=chat(model, stream=stream))
    took_s = monotonic() - began
    if answer.status_code != 200:
        return answer.status_code, error_of(answer)["code"], took_s
    if b'"error":{' in answer.content:
        return 200, error_event_of(answer.content)["code"], took_s
    return 200, None, took_s


async def test_the_limit_to_connect(
    start_router: StartRouter, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mute_listener() as port:
        async with one_engine(start_router, options) as scene:
            url = f"http://127.0.0.1:{port}"
            await iir(scene.router, monkeypatch, "providers", "add", "mute", "--base-url", url)
            await add_limited(scene, monkeypatch, "--connect-s", str(LIMIT_S), provider="mute")
            for stream in (True, False):
                status, code, took_s = await timed(scene, "limited", stream=stream)
                assert (status, code) == (502, "upstream_unreachable")
                assert LIMIT_S <= took_s < 1.0


# limit, fault, whether a stream has begun before it strikes
CASES = {
    "first byte: no head": ("--first-byte-s", "stall:ms=400", False),
    "first byte: a head, no event": ("--first-byte-s", "stall:after=0,ms=400", False),
    "idle": ("--idle-s", "stall:after=2,ms=400", True),
    "total": ("--total-s", "slow_stream:ms=5", True),
}


@pytest.mark.parametrize("case", CASES)
async def test_each_limit_cuts_its_deployment_only(
    start_router: StartRouter,
    options: EngineOptions,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    option, fault, has_begun = CASES[case]
    async with one_engine(start_router, options) as scene:
        await add_limited(scene, monkeypatch, option, str(LIMIT_S))
        scene.engine.script.add(fault)
        status, code, took_s = await timed(scene, "limited", stream=True)
        assert (status, code) == (200 if has_begun else 504, "upstream_timeout")
        assert LIMIT_S <= took_s < 1.0
        await scene.engine.journal.wait_for(lambda: scene.engine.requests[0].aborted)
        scene.engine.script.add(fault)
        assert (await timed(scene, "tiny", stream=True))[:2] == (200, None)
        await settled(scene.router)


async def test_the_limits_of_a_whole_answer(
    start_router: StartRouter, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_engine(start_router, options) as scene:
        await add_limited(scene, monkeypatch, "--total-s", str(LIMIT_S))
        for fault in ("stall:ms=400", "stall:after=1,ms=400"):
            scene.engine.script.add(fault)
            status, code, took_s = await timed(scene, "limited", stream=False)
            assert (status, code) == (504, "upstream_timeout")
            assert LIMIT_S <= took_s < 1.0
            scene.engine.script.add(fault)
            assert (await timed(scene, "tiny", stream=False))[:2] == (200, None)


async def test_the_routers_total_limit_is_not_for_streams(
    start_router: StartRouter, options: EngineOptions
) -> None:
    async with one_engine(start_router, options, router_total_timeout_s=LIMIT_S) as scene:
        status, code, took_s = await timed(scene, "tiny", stream=True)
        assert (status, code) == (200, None)
        assert took_s > 2 * LIMIT_S
        scene.engine.script.add("stall:ms=400")
        assert (await timed(scene, "tiny", stream=False))[:2] == (504, "upstream_timeout")


def test_the_defaults_suit_long_prompts_and_long_streams() -> None:
    settings = load_settings()
    assert settings.router_connect_timeout_s <= 10
    assert settings.router_first_byte_timeout_s >= 120  # a long prompt on a Mac
    assert settings.router_idle_timeout_s >= 60
    assert settings.router_first_byte_timeout_s < settings.router_deadline_s
    assert settings.router_total_timeout_s >= settings.router_first_byte_timeout_s
