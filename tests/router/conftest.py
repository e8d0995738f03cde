"""Fixtures of the router's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from tests.router.harness import StartRouter, starter

# As in production, where loops matter: how connections end, and when their owner hears of it.
_ON_UVLOOP = {"test_cancellation"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Say on which loop a test runs (pytest-asyncio)."""
    if item.path.stem in _ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def start_router(tmp_path: Path) -> StartRouter:
    """Return a function that starts routers; see `tests.router.harness.starter`."""
    return starter(tmp_path / "router-home")
