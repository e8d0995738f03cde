"""Fixtures of the shared package's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from shared.http.transport import Transport
from tests.shared.transports import TRANSPORTS

# Both loops: services run on uvloop, where there is one, and loops differ in how connections end.
_ON_BOTH_LOOPS = {
    "test_http_transport",
    "test_http_transport_failures",
    "test_http_transport_framing",
    "test_lean_transport",
    "test_lean_races",
    "test_lean_tls",
}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Say on which loops a test runs (pytest-asyncio)."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in _ON_BOTH_LOOPS:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(params=sorted(TRANSPORTS))
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    made = TRANSPORTS[request.param]()
    yield made
    await made.aclose()
    await asyncio.sleep(0)
