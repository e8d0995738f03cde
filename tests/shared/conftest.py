"""Fixtures of the shared package's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.http.transport import Transport
from tests.shared.transports import TRANSPORTS


@pytest.fixture(params=sorted(TRANSPORTS))
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    made = TRANSPORTS[request.param]()
    yield made
    await made.aclose()
    await asyncio.sleep(0)
