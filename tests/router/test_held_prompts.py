"""What a call held is freed with its end, however it ends, and not when the collector comes by."""

from __future__ import annotations

import asyncio
import gc
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from shared.testing.raw_client import connected
from tests.router.harness import StartRouter
from tests.router.kept import answer_from, request_of, warm
from tests.router.scenes import chat, settled

_LONG = 100_000


@contextmanager
def left_for_the_collector() -> Iterator[list[int]]:
    """Yield a list that holds, after the block, the lengths of long texts that only circles hold.

    What the engine holds, which runs in this process too, does not count.
    """
    found: list[int] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        engines = [
            each for each in gc.garbage if type(each).__module__.startswith("shared.testing")
        ]
        theirs = {id(each) for each in engines} | {
            id(getattr(each, "__dict__", None)) for each in engines
        }
        texts = {
            id(text): len(text)
            for each in gc.garbage
            if id(each) not in theirs
            for text in gc.get_referents(each)
            if isinstance(text, (bytes, bytearray, str)) and len(text) >= _LONG
        }
        found.extend(texts.values())
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def ask_with_long_prompts(
    start_router: StartRouter, fault: str, ask: Callable[[Reader, Writer], Awaitable[None]]
) -> list[int]:
    """Ask three times, each with that fault, if any; return what prompts were left for the collector."""
    async with warm(start_router) as scene:
        with left_for_the_collector() as found:
            for _ in range(3):
                if fault:
                    scene.engine.script.add(fault)
                async with connected(scene.router.base_url) as (reader, writer):
                    await ask(reader, writer)
                await settled(scene.router)
            await asyncio.sleep(0)
        return found


@pytest.mark.parametrize(
    ("fault", "status"),
    [("", 200), ("status:code=400", 400), ("status:code=500", 500), ("garbage", 502), ("cut", 200)],
)
async def test_a_prompt_is_freed_with_its_call(
    start_router: StartRouter, fault: str, status: int
) -> None:
    async def ask(reader: Reader, writer: Writer) -> None:
        writer.write(request_of(chat(filler="x" * _LONG)))
        assert (await answer_from(reader))[0] == status

    assert await ask_with_long_prompts(start_router, fault, ask) == []


@pytest.mark.parametrize("fault", ["", "cut:after=2", "error_event:after=2", "bad_json", "no_done"])
async def test_a_prompt_is_freed_with_its_stream(start_router: StartRouter, fault: str) -> None:
    async def ask(reader: Reader, writer: Writer) -> None:
        writer.write(request_of(chat(filler="x" * _LONG, stream=True)))
        with anyio.fail_after(10):
            answer = await reader.readuntil(b"0\r\n\r\n")
        assert (b'"error":{' in answer) is bool(fault)

    assert await ask_with_long_prompts(start_router, fault, ask) == []
