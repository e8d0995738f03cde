"""What a router holds in memory that only serves: nothing that no request needs."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from router.store.migrate import migrate
from router.store.prepare import prepare
from router.store.reader import RegistryReader
from tests.router.process import router_process

# Each takes 1 to 12 MB and 10 to 150 ms; what needs one loads it then.
_NEEDLESS = {
    "aiohttp",
    "alembic",
    "docker",
    "fastapi",
    "greenlet._greenlet",
    "httpx",
    "jinja2",
    "mako",
    "openai",
    "pygments",
    "redis",
    "requests",
    "rich.console",  # `rich` and `greenlet` are listed: what is hidden from structlog counts as tried
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext",
    "sqlalchemy.orm",
    "starlette.requests",
    "unittest",
    "yaml",
}
# It holds 67 (CPython 3.11 on x86-64); FastAPI back again would make 76, Alembic, Rich and YAML 82.
_MOST_MB = 73


def loaded_by(log: str) -> set[str]:
    """Return the modules that `PYTHONPROFILEIMPORTTIME` has named."""
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.slow
async def test_a_start_loads_nothing_that_no_request_needs(tmp_path: Path) -> None:
    async with router_process(tmp_path, PYTHONPROFILEIMPORTTIME="1") as router:
        for path in ("/health", "/readyz", "/metrics", "/v1/models", "/favicon.ico"):
            await router.client.get(path)
        loaded = loaded_by(router.log())
        assert (await router.client.get("/docs")).status_code == 200
        assert "fastapi" in loaded_by(router.log()), "it is loaded by who asks for it"
    assert {"pydantic", "sqlalchemy", "structlog"} <= loaded, "the log tells what is loaded"
    assert loaded & _NEEDLESS == set()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
async def test_an_idle_router_is_small(tmp_path: Path) -> None:
    async with router_process(tmp_path) as router:
        assert router.rss_mb() < _MOST_MB


def test_a_registry_that_is_prepared_is_not_written_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'models.db'}"
    prepare(url)
    before = (tmp_path / "models.db").read_bytes()
    prepare(url)
    assert (tmp_path / "models.db").read_bytes() == before


def test_a_packaged_seed_that_changed_is_read_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'models.db'}"
    migrate(url)
    with closing(sqlite3.connect(tmp_path / "models.db")) as connection:
        connection.execute("INSERT INTO meta VALUES ('seeded:packaged', 'of an older version')")
        connection.commit()
    prepare(url)
    reader = RegistryReader(url)
    catalog = reader.catalog()
    reader.close()
    assert catalog is not None
    assert "openai" in catalog.providers
