"""The simulated engine as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.testing.raw_client import call_raw, connected, render_request, split_answer
from shared.testing.simulated_engine import build, crash_process, main, parse_arguments, serve
from shared.testing.steps import Crash, Latency

ROOT = Path(__file__).resolve().parents[2]
PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start the command; yields it and its base URL, and kills what is left."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "shared.testing.simulated_engine", "--port", "0", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        line = (await asyncio.wait_for(child.stdout.readline(), 20)).decode()
        assert line.startswith("simulated engine, not a real model: ")
        found = re.search(r"http://\S+", line)
        assert found is not None
        yield child, found.group()
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_sigterm_ends_it_at_once_even_in_the_middle_of_a_stream() -> None:
    async with process("--model", "a", "--model", "b") as (child, base_url):
        assert b'"id":"b"' in await call_raw(base_url, "/v1/models", method="GET")
        async with connected(base_url) as (reader, writer):
            writer.write(render_request("POST", PATH, ASK, {"x-sim-fault": "stall:after=1"}))
            await reader.readuntil(b"data: ")
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 3) == 0


@pytest.mark.parametrize(
    ("fault", "code"), [("crash", 1), ("crash:after=1,exit_code=3", 3), ("crash:signal=9", -9)]
)
async def test_a_crash_ends_the_process(fault: str, code: int) -> None:
    async with process("--fault", fault) as (child, base_url):
        try:
            raw = await call_raw(base_url, PATH, ASK)
        except ConnectionResetError:
            raw = b""
        assert split_answer(raw)[1].count(b"data: ") == ("after" in fault)
        assert await asyncio.wait_for(child.wait(), 3) == code


async def test_it_can_ignore_sigterm() -> None:
    async with process("--ignore-sigterm") as (child, base_url):
        child.send_signal(signal.SIGTERM)
        assert b" 200 OK" in await call_raw(base_url, "/health", method="GET")
        assert child.returncode is None


def test_the_command_line_makes_the_engine() -> None:
    engine = build(
        parse_arguments(
            [
                *("--model", "m", "--ttft-ms", "20", "--itl-ms", "5", "--tokens", "3"),
                *("--persona", "llamacpp", "--api-key", "k", "--slots", "2", "--seed", "4"),
                *("--load-ms", "100", "--context", "99"),
                *("--fault", "cut", "--fault", "stall:after=1"),
            ]
        )
    )
    options = engine.options
    assert options.latency == Latency(ttft_s=0.02, itl_s=0.005)
    assert (options.models, options.tokens, options.seed) == (("m",), 3, 4)
    assert (options.persona.name, options.api_key, options.slots) == ("llamacpp", "k", 2)
    assert (options.load_s, options.context_tokens) == (0.1, 99)
    assert [entry[0].kind for entry in engine.script.pending()] == ["cut", "stall"]
    assert build(parse_arguments([])).options.models == ("simulated",)


async def test_serve_ends_by_its_signal(capsys: pytest.CaptureFixture[str]) -> None:
    task = asyncio.create_task(serve(parse_arguments(["--ignore-sigterm"])))
    for _ in range(2000):
        await asyncio.sleep(0.001)
        if "http://127.0.0.1:" in capsys.readouterr().out:
            break
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.01)
    assert not task.done()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(task, 2)


def test_main_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--nonsense"])
    assert "usage: simulated_engine" in capsys.readouterr().err


def test_a_crash_calls_nothing_but_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: calls.append(("kill", number)))
    monkeypatch.setattr(os, "_exit", lambda code: calls.append(("exit", code)))
    crash_process(Crash(signal=9))
    crash_process(Crash(exit_code=5))
    assert calls == [("kill", 9), ("exit", 1), ("exit", 5)]
