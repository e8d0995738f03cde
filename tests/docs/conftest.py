"""What the tests of the documents share: the process that becomes every program, and a place to run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.playground import Playground, zygote


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """Return the folder in which the programs lie."""
    with zygote() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_ground(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """Return a router and an agent for all pages that leave them as open as they were."""
    with Playground(place, tmp_path_factory.mktemp("docs") / "checkout") as ground:
        yield ground
