"""What the tests of the simulated engine's dialect share: engines, clients for them, requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import VLLM, Persona
from tests.loopback_sdks import openai_at

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello small world"}]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city", "unit", "unknown"],
            },
        },
    },
    {"type": "function", "function": {"name": "no_arguments"}},
]


@asynccontextmanager
async def client_of(
    *, persona: Persona = VLLM, models: tuple[str, ...] = ("tiny",), **options: object
) -> AsyncIterator[httpx.AsyncClient]:
    made = EngineOptions(persona=persona, models=models, **options)  # type: ignore[arg-type]
    async with (
        running(SimulatedEngine(made)) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        yield client


@asynccontextmanager
async def sdk_of(**options: object) -> AsyncIterator[openai.AsyncOpenAI]:
    made = EngineOptions(models=("tiny",), **options)  # type: ignore[arg-type]
    async with (
        running(SimulatedEngine(made)) as base_url,
        openai_at(base_url) as sdk,
    ):
        yield sdk


def events(text: str) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
